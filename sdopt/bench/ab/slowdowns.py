"""Faults of time and memory that a pipeline carries until they are taken out again.

`loop:0.03`, `decoder:0.03` and `host:0.03` make an image 3 % longer, in the denoising loop (spread
over its UNet calls), in the decoder or on the host. On a GPU the first two keep the device busy,
since a waiting host would hide behind it. `memory:0.01` holds 1 % of the image's peak meanwhile,
`held:64` holds 64 MiB, `leak:64` lets 64 MiB of each image stay.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from sdopt.engine.put_in import PutIn
from sdopt.errors import SdoptError, UnknownNameError
from sdopt.util.replaced import replaced

if TYPE_CHECKING:
    import torch

    from sdopt.pipelines.pipeline import LevelPipeline

    Undo = Callable[[], None]

MIB = 2**20
CALIBRATION_CYCLES = 10_000_000
MEMORY_PLACES = ("memory", "leak")
"""Faults that take memory of a CUDA device instead of time."""


def inject(pipeline: LevelPipeline, fault: str, image_ms: float) -> Undo:
    """Put the fault into the pipeline, whose images take `image_ms`; the result undoes it.

    Raises UnknownNameError for a fault that does not exist, SdoptError for a size that is none.
    """
    place, size = parse(fault)
    return FAULTS[place](pipeline, size, image_ms)


def parse(fault: str) -> tuple[str, float]:
    """('loop', 0.1) for 'loop:0.1'; raises as `inject` does."""
    place, _, size = fault.partition(":")
    if place not in FAULTS:
        raise UnknownNameError("fault", place, FAULTS)
    try:
        number = float(size)
    except ValueError as error:
        raise SdoptError(f"fault {fault!r}: {size!r} is no number; write {place}:0.1") from error
    if not 0 < number < math.inf:
        raise SdoptError(f"fault {fault!r}: the size has to be above 0 and finite")
    return place, number


def _in_loop(pipeline: LevelPipeline, size: float, image_ms: float) -> Undo:
    each_ms = size * image_ms / pipeline.level.steps
    undo = _after_forward(pipeline.unet, _waiting(pipeline.device, each_ms))
    return _in_graphs_of_its_own(pipeline, f"loop:{size}", undo)


def _in_decoder(pipeline: LevelPipeline, size: float, image_ms: float) -> Undo:
    wait = _waiting(pipeline.device, size * image_ms)
    undo = _after_forward(pipeline.vae.decoder, wait)
    return _in_graphs_of_its_own(pipeline, f"decoder:{size}", undo)


def _in_graphs_of_its_own(pipeline: LevelPipeline, fault: str, undo: Undo) -> Undo:
    """Give the engine other graphs while a fault is in: what it replays was captured without.

    They are kept for the next time, since a capture takes about a second.
    """
    if pipeline.engine is None:
        return undo
    engine = pipeline.engine
    kept: dict[str, Any] = vars(engine).setdefault("graphs_with_faults", {})
    graphs = engine.graphs
    before, graphs.kept = graphs.kept, kept.setdefault(fault, OrderedDict())

    def undo_and_swap() -> None:
        undo()
        graphs.kept = before

    return undo_and_swap


def _on_host(pipeline: LevelPipeline, size: float, image_ms: float) -> Undo:
    return _attached(pipeline, "each_image", lambda: _spin(size * image_ms))


def _held_share(pipeline: LevelPipeline, size: float, image_ms: float) -> Undo:
    """A share of the peak since that was last reset."""
    import torch

    return _held(pipeline, int(size * torch.cuda.max_memory_allocated(pipeline.device)))


def _held_mib(pipeline: LevelPipeline, size: float, image_ms: float) -> Undo:
    return _held(pipeline, int(size * MIB))


def _held(pipeline: LevelPipeline, amount: int) -> Undo:
    """Bytes that each image takes before its loop, after giving those of the last one back."""
    import torch

    held: list[torch.Tensor] = []

    def take() -> None:
        held.clear()
        held.append(torch.empty(amount, dtype=torch.uint8, device=pipeline.device))

    return _until_cleared(pipeline, take, held)


def _leaked(pipeline: LevelPipeline, size: float, image_ms: float) -> Undo:
    import torch

    kept: list[torch.Tensor] = []

    def keep() -> None:
        # Written: what nobody wrote to is not resident on a CPU.
        kept.append(torch.ones(int(size * MIB), dtype=torch.uint8, device=pipeline.device))

    return _until_cleared(pipeline, keep, kept)


def _until_cleared(pipeline: LevelPipeline, take: Callable[[], None], held: list[Any]) -> Undo:
    undo = _attached(pipeline, "each_image", take)

    def give_back() -> None:
        undo()
        held.clear()

    return give_back


FAULTS: dict[str, Callable[[LevelPipeline, float, float], Undo]] = {
    "loop": _in_loop,
    "decoder": _in_decoder,
    "host": _on_host,
    "memory": _held_share,
    "held": _held_mib,
    "leak": _leaked,
}


def _after_forward(module: torch.nn.Module, action: Callable[[], None]) -> Undo:
    """Act after each forward pass; the result restores it.

    A level's own forward pass stays in its place: another one would be a change of the pipeline,
    which the engine refuses and compiled levels compute uncompiled.
    """
    own = vars(module).get("forward")
    if isinstance(own, PutIn):
        return _attached(own, "after", action)
    original = module.forward

    def followed(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        action()
        return result

    return _attached(module, "forward", followed)


def _attached(owner: Any, name: str, value: Any) -> Undo:
    """Put something into an attribute; the result restores it."""
    stack = ExitStack()
    stack.enter_context(replaced(owner, name, value))
    return stack.close


def _waiting(device: torch.device, milliseconds: float) -> Callable[[], None]:
    """Something that keeps the device busy for that long."""
    if device.type != "cuda":
        return lambda: _spin(milliseconds)
    import torch

    cycles = int(milliseconds * _cycles_per_ms(device))
    return lambda: torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]


def _cycles_per_ms(device: torch.device) -> float:
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda._sleep(CALIBRATION_CYCLES)  # type: ignore[no-untyped-call]
    begin.record()
    torch.cuda._sleep(CALIBRATION_CYCLES)  # type: ignore[no-untyped-call]
    end.record()
    end.synchronize()
    return CALIBRATION_CYCLES / float(begin.elapsed_time(end))


def _spin(milliseconds: float) -> None:
    """Keep the host busy for that long; to sleep would give the core away."""
    until = time.perf_counter() + milliseconds / 1e3
    while time.perf_counter() < until:
        pass
