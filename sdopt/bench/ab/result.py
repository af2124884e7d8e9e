"""What an A/B run is asked for, and what it found; plain frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdopt.bench.ab.rounds import Side, latency_pair

if TYPE_CHECKING:
    from sdopt.bench.judge.verdict import Verdict

WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True, kw_only=True)
class Sides:
    """The two trees; each holds a package `sdopt`."""

    base: Path
    head: Path

    def tree(self, side: Side) -> Path:
        """The tree of that side."""
        return self.base if side == "base" else self.head


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What to compare.

    `source` and `prompts` are those of the suite; `levels` None means all that either side has.
    After `max_pairs` nothing is added, decided or not. `worker` is the program that both sides
    run; one that says nothing for `load_timeout_s` while it loads, else `timeout_s`, has failed.
    With `own_caches` each side compiles for itself, else both use the suite's compile cache, which
    is for trees that are the same. `compile_threads` is Inductor's: where the cache is warm, 1
    saves a pool of processes that would have nothing to do.
    """

    sides: Sides
    source: str = "auto"
    prompts: Path | None = None
    levels: tuple[str, ...] | None = None
    max_pairs: int
    worker: Path = WORKER
    load_timeout_s: float = 1800.0
    timeout_s: float = 300.0
    own_caches: bool = True
    compile_threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class SideSample:
    """What one process measured of one level.

    `first_call_s` is its first image, compilation included; `peak_allocated_mib` is None without
    CUDA.
    """

    rounds_ms: tuple[float, ...]
    first_call_s: float
    peak_allocated_mib: float | None


@dataclass(frozen=True, kw_only=True)
class LevelPair:
    """One level in one pair of processes; `pair` counts from 1, `first` went first.

    The rounds of each side came in blocks of `block_rounds`, in the order of `rounds.schedule`.
    """

    level: str
    pair: int
    first: Side
    block_rounds: int
    base: SideSample
    head: SideSample

    @property
    def metrics(self) -> dict[str, tuple[float, float]]:
        """The base's and the head's value of each metric that was measured."""
        base, head = self.base, self.head
        values = {"latency_ms": latency_pair(base.rounds_ms, head.rounds_ms, self.block_rounds)}
        if base.peak_allocated_mib is not None and head.peak_allocated_mib is not None:
            values["peak_allocated_mib"] = (base.peak_allocated_mib, head.peak_allocated_mib)
        return values


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the pairs came to.

    `undecided` are the (level, metric) that the judge had not decided after the last pair; there
    are none unless it wants more pairs than there may be. `redefined` says for a level that both
    sides have how its definition changed; `new` are the wanted levels that only the head has,
    `removed` all that only the base has; neither was measured. `work` holds the counts of one
    image, by level and side.
    """

    device: str
    verdicts: tuple[Verdict, ...] = ()
    undecided: tuple[tuple[str, str], ...] = ()
    pairs: tuple[LevelPair, ...] = ()
    redefined: Mapping[str, str] = field(default_factory=dict)
    new: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    work: Mapping[str, Mapping[Side, Mapping[str, Any]]] = field(default_factory=dict)

    def values(self, level: str, metric: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The base's and the head's values of a metric, one for each pair that has it."""
        measured = [pair.metrics for pair in self.pairs if pair.level == level]
        both = [metrics[metric] for metrics in measured if metric in metrics]
        return tuple(base for base, _ in both), tuple(head for _, head in both)
