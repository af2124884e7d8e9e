"""What timed rounds must not do: compile, capture, or leave memory behind."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from statistics import median
from typing import Any

import psutil
import torch

from sdopt.bench.measure.observation import compiled_graphs
from sdopt.util.replaced import replaced

MIB = 2**20
SUSPICIOUS_MIB = 0.5
"""Growth in timed rounds from which it is measured again, see `growth_of`."""
ROUNDS = 8
APART = 2
"""Rounds between two readings that are compared: what leaks at every second image shows too."""


@dataclass(kw_only=True)
class Rounds:
    """Readings before each round and after the last one, warm-up rounds first.

    `held_mib` is the memory in use: resident of the process on a CPU, allocated on a GPU. `graphs`
    counts what was compiled or captured before.
    """

    device: torch.device
    captures: list[None] = field(default_factory=list)
    held_mib: list[float] = field(default_factory=list)
    graphs: list[int] = field(default_factory=list)

    def read(self) -> None:
        """Never within a round: it is the clock's."""
        self.held_mib.append(held_mib(self.device))
        self.graphs.append(compiled_graphs() + len(self.captures))

    def new_graphs(self, warmup: int) -> int:
        """How many were made after the warm-up rounds."""
        timed = self.graphs[warmup:]
        return timed[-1] - timed[0] if timed else 0

    def growth_mib(self, warmup: int) -> float | None:
        """Memory that an image leaves behind, None from too few rounds to tell.

        The smaller of two estimates. The median over pairs of readings is not moved by a few
        allocations that stay; the rise of the lowest reading, from the first half to the second,
        not by what comes and goes.
        """
        timed = self.held_mib[warmup:]
        half = len(timed) // 2
        if half < APART:
            return None
        pairs = zip(timed, timed[APART:], strict=False)
        steady = median((later - earlier) / APART for earlier, later in pairs)
        lowest = (min(timed[-half:]) - min(timed[:half])) / (len(timed) - half)
        return min(steady, lowest)


@contextmanager
def watched_rounds(device: torch.device) -> Iterator[Rounds]:
    """Count the CUDA graphs that are captured inside, by whomever; `Rounds.read` does the rest."""
    rounds = Rounds(device=device)
    give_back_free_memory()
    owner: Any = torch.cuda.CUDAGraph
    original = owner.capture_begin

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        rounds.captures.append(None)
        return original(self, *args, **kwargs)

    with replaced(owner, "capture_begin", counted):
        yield rounds


def growth_of(run: Callable[[], object], device: torch.device) -> float | None:
    """Memory that each call leaves behind, measured without a clock.

    Free memory is given back before each reading, which would slow down timed rounds: a heap in
    pieces grows for a while though nothing is kept.
    """
    rounds = Rounds(device=device)
    for _ in range(ROUNDS):
        run()
        give_back_free_memory()
        rounds.read()
    return rounds.growth_mib(0)


def held_mib(device: torch.device) -> float:
    """What this process holds at this moment: tensors on a GPU, resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / MIB
    return float(_process().memory_info().rss) / MIB


def give_back_free_memory() -> None:
    """Let resident memory be what is in use: a leak would fill freed places of the heap first.

    Only glibc keeps so much of it, and has a call for it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@cache
def _process() -> psutil.Process:
    return psutil.Process()
