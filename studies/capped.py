"""One level under a cap of its device memory: built, and two images, in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any, Protocol
from unittest.mock import patch

from sdopt.errors import OutOfMemoryError, SdoptError, WorkerError
from sdopt.levels import get_level

PRELOADED = "studies.power.template"
PATIENCE_S = 300.0
MIB = 2**20
NO_ROOM = ("out of memory", "alloc_failed", "unable to find an engine", "no valid execution plans")
"""What libraries say, apart from PyTorch's own error, that got no memory to work in."""

Attempt = dict[str, Any]
"""`works`, and either `detail` or the MiB and milliseconds of `_figures`."""
Try = Callable[[str, float | None], Attempt]
"""A level by name under a cap in MiB; None is no cap."""


class RefusedError(SdoptError):
    """A level that this device refuses, or that does not fit on it even without a cap."""


class Allocator(Protocol):
    """What is asked of PyTorch's allocator; a stand-in of it in tests."""

    def cap(self, mib: float | None) -> None:
        """From now on let it reserve no more than that, None is no cap; peaks begin anew."""

    def figures(self) -> dict[str, float]:
        """MiB: peaks of what was allocated and reserved, and what the process holds besides."""

    def held_mib(self) -> float:
        """What tensors hold now."""

    def synchronize(self) -> None:
        """Wait for the device."""


class CudaAllocator:
    """That of this process's first CUDA device, of which others used `others_mib` before it."""

    def __init__(self, others_mib: float) -> None:
        self.others_mib = others_mib

    def cap(self, mib: float | None) -> None:
        """Counts what is reserved, pools of CUDA graphs and libraries' workspaces included."""
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        if mib is None:
            return
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, mib * MIB / total))

    def figures(self) -> dict[str, float]:
        """`outside_mib` is the context, kernels' code and what else no cap is on."""
        import torch

        outside = used_mib() - self.others_mib - torch.cuda.memory_reserved() / MIB
        return {
            "peak_allocated_mib": torch.cuda.max_memory_allocated() / MIB,
            "peak_reserved_mib": torch.cuda.max_memory_reserved() / MIB,
            "outside_mib": max(0.0, outside),
            "retries": torch.cuda.memory_stats()["num_alloc_retries"],
        }

    def held_mib(self) -> float:
        """The level's weights, once it is built."""
        import torch

        return torch.cuda.memory_allocated() / MIB

    def synchronize(self) -> None:
        """Wait for the device."""
        import torch

        torch.cuda.synchronize()


def used_mib() -> float:
    """What all processes use of the first CUDA device."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return float(total - free) / MIB


def attempt(level: str, source: str, cap_mib: float | None, allocator: Allocator) -> Attempt:
    """Build the level, then make two images under the cap in this process; the second is timed.

    Building has no cap: random weights are drawn in float32 on the GPU, which no others are.
    Without a cap a level that does not fit raises OutOfMemoryError: there is nothing to find out.
    """
    try:
        return {"works": True, **_figures(level, source, cap_mib, allocator)}
    except (OutOfMemoryError, RuntimeError) as error:
        if cap_mib is None or not _lacks_room(error):
            raise
        return {"works": False, "detail": str(error).split("; ")[0][:300]}


def _lacks_room(error: Exception) -> bool:
    said = str(error).lower()
    return isinstance(error, OutOfMemoryError) or any(words in said for words in NO_ROOM)


def _figures(
    level: str, source: str, cap_mib: float | None, allocator: Allocator
) -> dict[str, float]:
    from sdopt.pipelines.pipeline import build
    from sdopt.pipelines.workload import generate, load_workload
    from sdopt.weights.sources import resolve

    weights = resolve(source)
    request = load_workload(weights).requests[0]
    pipeline = build(weights, get_level(level))
    held = allocator.held_mib()
    allocator.cap(cap_mib)
    generate(pipeline, request)
    allocator.synchronize()
    start = time.perf_counter()
    generate(pipeline, request)
    allocator.synchronize()
    ms = 1e3 * (time.perf_counter() - start)
    return {**allocator.figures(), "held_mib": held, "ms": ms}


def starting_fresh(source: str, others_mib: Callable[[], float]) -> Try:
    """What tries a level in a process of its own, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    with patch.dict(os.environ, PYTORCH_NVML_BASED_CUDA_CHECK="1"):
        forkserver.ensure_running()

    def fresh(level: str, cap_mib: float | None) -> Attempt:
        return in_own_process(_attempt_on_cuda, level, source, cap_mib, others_mib())

    return fresh


def _attempt_on_cuda(level: str, source: str, cap_mib: float | None, others: float) -> Attempt:
    return attempt(level, source, cap_mib, CudaAllocator(others))


def in_own_process(target: Callable[..., Attempt], *arguments: Any) -> Attempt:
    """What the function gives in a process of its own.

    Raises WorkerError if that dies or hangs, RefusedError for what the function refuses.
    """
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, target, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(PATIENCE_S):
            raise WorkerError(f"a try of {arguments[0]!r} did not end in {PATIENCE_S:.0f} s")
        answer: Attempt | str = ours.recv()
    except EOFError as error:
        process.join()
        raise WorkerError(
            f"the process that tried {arguments[0]!r} died with code {process.exitcode}; see above"
        ) from error
    finally:
        if process.is_alive():
            process.join(10.0)
        if process.is_alive():
            process.kill()
        process.join()
    if isinstance(answer, str):
        raise RefusedError(answer)
    return answer


def _answer(connection: Connection, target: Callable[..., Attempt], arguments: Any) -> None:
    try:
        connection.send(target(*arguments))
    except SdoptError as error:  # such as a level that this card is refused
        connection.send(str(error))
    connection.close()
