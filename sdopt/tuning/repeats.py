"""Whether an operation gives the same bits every time, and the right ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from sdopt.engine import cuda_graphs
from sdopt.engine.float8 import Rounded
from sdopt.engine.tiles import LIBRARY, Tile
from sdopt.tuning.jobs import Job, Operands, computed, operand_dtype, random_operands

REPEATS = 200
SETS = 4
"""Fresh operands; the repeats are shared out between them, half of each beside other work."""
IN_GRAPH = 25
MOST_TIMES_THE_ERROR = 1.5
"""Of the library's, against float32: a right sum is rounded as often or less."""
FLOAT8_ERROR = 4e-3
"""Of the matrix unit's sums of float8, which keep 14 bits (DeepSeek-AI 2024, section 3.3.2,
https://arxiv.org/abs/2412.19437): a tenth of what rounding the operands costs, 3 to 4 %."""
OTHER_SIDE, OTHER_TIMES = 1536, 16
"""The other stream's products leave some multiprocessors free, and its copies some of the bus."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How often a tile's result differed, and how far the worst was from float32's."""

    repeats: int
    differing: int
    error: float
    library_error: float
    float8: bool = False

    @property
    def passed(self) -> bool:
        """Never different, and as exact as the library, or as float8 can be; NaN is neither."""
        return self.differing == 0 and self.error <= self.limit

    @property
    def limit(self) -> float:
        """Of the error."""
        return FLOAT8_ERROR if self.float8 else MOST_TIMES_THE_ERROR * self.library_error

    def __str__(self) -> str:
        return (
            f"{self.differing} of {self.repeats} repeats differ, relative L2 error "
            f"{self.error:.2e} (library {self.library_error:.2e}, at most {self.limit:.2e})"
        )

    def fields(self) -> dict[str, Any]:
        """For the stored table, whose keys say what is in float8."""
        return {name: value for name, value in asdict(self).items() if name != "float8"}


def prove(job: Job, tile: Tile, device: torch.device, repeats: int = REPEATS) -> Proof:
    """Repeat an operation over memory full of NaN, alone and beside other work."""
    proofs = []
    for _ in range(SETS):
        operands = random_operands(job, device)
        with poisoned_memory():
            first = computed(job, operands, tile)
        differing = 0
        for beside in (False, True):
            differing += differing_repeats(
                lambda: computed(job, operands, tile),  # noqa: B023 (called at once)
                first,
                repeats // (2 * SETS),
                beside=beside,
            )
        right = reference(job, operands)
        library = relative_error(computed(job, operands, LIBRARY), right)
        proofs.append((relative_error(first, right), library, differing))
    error, library, _ = max(proofs, key=lambda one: _excess(one[0], one[1]))
    return Proof(
        repeats=repeats // (2 * SETS) * 2 * SETS,
        differing=sum(differing for *_, differing in proofs),
        error=error,
        library_error=library,
        float8=job.float8,
    )


def _excess(error: float, library_error: float) -> float:
    """How many times the library's error; NaN is more than any number."""
    return error / library_error if library_error and isfinite(error) else inf


def differing_repeats(
    compute: Callable[[], Tensor], first: Tensor, repeats: int, *, beside: bool
) -> int:
    """How many results differ from the first in any bit; on the GPU replayed in a graph."""
    count = torch.zeros((), dtype=torch.int64, device=first.device)

    def once() -> None:
        with poisoned_memory():
            result = compute()
        count.add_(torch.ne(_bits(result), _bits(first)).any())

    if not first.is_cuda:
        for _ in range(repeats):
            once()
        return int(count)
    together = min(IN_GRAPH, repeats)
    graph = torch.cuda.CUDAGraph()
    with cuda_graphs.capturing(graph):
        for _ in range(together):
            once()
    count.zero_()
    for _ in range(-(-repeats // together)):
        with beside_other_work() if beside else nullcontext():
            graph.replay()
    return int(count)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """What PyTorch allocates inside is full of NaN: a result shows what was not written."""
    memory: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        memory.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = before[2]


@contextmanager
def beside_other_work() -> Iterator[None]:
    """Another stream multiplies and copies from before what is launched inside until after it."""
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        a = torch.randn(OTHER_SIDE, OTHER_SIDE, device="cuda", dtype=operand_dtype())
        product, copy = torch.empty_like(a), torch.empty_like(a)

    def launch() -> Any:
        with torch.cuda.stream(stream):
            for _ in range(OTHER_TIMES):
                torch.mm(a, a, out=product)
                copy.copy_(a)
            ended: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ended.record(stream)
        return ended

    under_way = [launch(), launch()]
    yield
    done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()
    while not done.query():
        under_way.append(launch())
        under_way.pop(0).synchronize()
    stream.synchronize()


def reference(job: Job, operands: Operands) -> Tensor:
    """The library's result in float32, without TF32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    was = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = False
    try:
        return computed(job, [*map(_exact, operands)], LIBRARY)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = was


def _exact(operand: Tensor | Rounded | None) -> Tensor | Rounded | None:
    if isinstance(operand, Rounded):
        return replace(operand, dtype=torch.float32)
    return None if operand is None else operand.float()


def relative_error(found: Tensor, right: Tensor) -> float:
    """L2 of the difference by L2 of what is right."""
    right = right.float()
    return float((found.float() - right).norm() / right.norm())


def _bits(result: Tensor) -> Tensor:
    return result.view(torch.int16)
