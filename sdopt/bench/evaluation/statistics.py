"""Statistics of a stream of prompts in memory that does not grow: intervals, histogram, worst."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdopt.bench.evaluation.parts import HOST, Made

SEED = 2026
REPLICATES = 2000
CONFIDENCE = 0.95
MOST_ROWS = 1024
"""Drawn for at once: their memory is that times REPLICATES numbers."""
FINE_BINS = 20_000
SHOWN_BINS = 20
WORST_SHARE = 0.01


class Bootstrap:
    """Means with bootstrap intervals, from blocks of rows in any number.

    A Poisson bootstrap: each replicate takes each prompt k times, k of Poisson's distribution with
    mean 1, which for many prompts is the multinomial of the usual one (Hanley & MacGibbon 2006,
    "Creating non-parametric bootstrap samples using Poisson frequencies"). A block's draws depend
    on its number alone, so the intervals do not depend on who made what.
    """

    def __init__(self, names: Sequence[str], replicates: int = REPLICATES) -> None:
        self.names, self.replicates = tuple(names), replicates
        self.sums = np.zeros((replicates, len(names)))
        self.weights = np.zeros((replicates, len(names)))
        self.total = np.zeros(len(names))
        self.count = np.zeros(len(names), np.int64)

    def add(self, block: int, values: NDArray[np.float64]) -> None:
        """Rows of a block, (rows, names); NaN is no value."""
        generator = np.random.default_rng((SEED, block))
        for first in range(0, len(values), MOST_ROWS):
            rows = values[first : first + MOST_ROWS]
            there = np.isfinite(rows)
            zeroed = np.where(there, rows, 0.0)
            drawn = generator.poisson(1.0, (len(rows), self.replicates)).astype(np.float64).T
            self.sums += drawn @ zeroed
            self.weights += drawn @ there
            self.total += zeroed.sum(0)
            self.count += there.sum(0)

    def interval(self, name: str) -> tuple[float, float, float]:
        """Mean, lower and upper bound of the percentile interval; NaN without any value."""
        place = self.names.index(name)
        if not self.count[place]:
            return (math.nan,) * 3
        drawn = self.weights[:, place] > 0
        means = self.sums[drawn, place] / self.weights[drawn, place]
        beyond = (1 - CONFIDENCE) / 2
        low, high = np.quantile(means, (beyond, 1 - beyond))
        return float(self.total[place] / self.count[place]), float(low), float(high)


class Histogram:
    """Counts in fine bins over a range that is known; what lies outside counts at its ends."""

    def __init__(self, least: float, most: float) -> None:
        self.least, self.most = least, most
        self.counts = np.zeros(FINE_BINS, np.int64)

    def add(self, values: NDArray[np.float64]) -> None:
        """NaN is no value."""
        values = values[np.isfinite(values)]
        place = (values - self.least) / (self.most - self.least) * FINE_BINS
        np.add.at(self.counts, np.clip(place, 0, FINE_BINS - 1).astype(np.int64), 1)

    def tail_mean(self, *, lowest: bool, share: float = WORST_SHARE) -> float:
        """The mean of that share of the values, one at least; NaN without any."""
        total = int(self.counts.sum())
        if not total:
            return math.nan
        wanted = max(1, math.ceil(share * total))
        counts = self.counts if lowest else self.counts[::-1]
        centres = self._centres() if lowest else self._centres()[::-1]
        before = np.concatenate(([0], np.cumsum(counts)[:-1]))
        taken = np.clip(wanted - before, 0, counts)
        return float((taken * centres).sum() / wanted)

    def shown(self) -> dict[str, list[float]]:
        """Few bins over what occurs: `edges`, one more than `counts`."""
        there = np.flatnonzero(self.counts)
        if not len(there):
            return {"edges": [], "counts": []}
        first, last = int(there[0]), int(there[-1]) + 1
        width = max(1, math.ceil((last - first) / SHOWN_BINS))
        starts = range(first, last, width)
        step = (self.most - self.least) / FINE_BINS
        edges = [self.least + step * start for start in [*starts, starts[-1] + width]]
        counts = [int(self.counts[start : start + width].sum()) for start in starts]
        return {"edges": [round(edge, 6) for edge in edges], "counts": counts}

    def _centres(self) -> NDArray[np.floating[Any]]:
        step = (self.most - self.least) / FINE_BINS
        centres: NDArray[np.floating[Any]] = self.least + step * (np.arange(FINE_BINS) + 0.5)
        return centres


@dataclass
class Worst:
    """The prompts with the lowest keys, the lowest first; of equal ones the first."""

    most: int = 10
    kept: list[tuple[float, int, Any]] = field(default_factory=list)

    def add(self, keys: NDArray[np.float64], indices: NDArray[np.int64], found_in: str) -> None:
        """Prompts of a part; NaN is no key."""
        for key, index in zip(keys.tolist(), indices.tolist(), strict=True):
            if math.isfinite(key):
                entry = (-key, -index, found_in)
                if len(self.kept) < self.most:
                    heapq.heappush(self.kept, entry)
                else:
                    heapq.heappushpop(self.kept, entry)

    def ranked(self) -> list[tuple[float, int, str]]:
        """Key, index and file of each."""
        return [(-key, -index, file) for key, index, file in sorted(self.kept, reverse=True)]


@dataclass
class _OfProcess:
    """The parts of one process; the first, in which it compiles, is not steady."""

    first: Made
    first_count: int
    last_s: float = -math.inf
    count: int = 0
    generate_s: float = 0.0
    all_host_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(HOST)))

    def add(self, made: Made, count: int) -> None:
        """One more; they may come in any order."""
        if made.generated_unix_s < self.first.generated_unix_s:
            self.first, self.first_count = made, count
        self.last_s = max(self.last_s, made.generated_unix_s)
        self.count += count
        self.generate_s += made.generate_s
        self.all_host_s = self.all_host_s + made.host_s

    @property
    def steady_count(self) -> int:
        """Images after the first part."""
        return self.count - self.first_count

    @property
    def steady_s(self) -> float:
        """From the first part's end to the last one's."""
        return self.last_s - self.first.generated_unix_s

    @property
    def host_s(self) -> NDArray[np.float64]:
        """Of HOST, after the first part."""
        return self.all_host_s - self.first.host_s


@dataclass
class Rates:
    """How fast a level's parts came, by session and process: what is steady, not its start."""

    seen: dict[tuple[str, int], _OfProcess] = field(default_factory=dict)

    def add(self, made: Made, count: int) -> None:
        """One part of so many images."""
        key = (made.session, made.process)
        if key not in self.seen:
            self.seen[key] = _OfProcess(first=made, first_count=count)
        self.seen[key].add(made, count)

    def told(self) -> dict[str, Any]:
        """Of the session with most images: each process's rate after its first part, added up."""
        totals: dict[str, float] = {}
        for (session, _), one in self.seen.items():
            totals[session] = totals.get(session, 0) + one.count
        if not totals:
            return {}
        chosen = max(totals, key=lambda session: totals[session])
        ours = {process: one for (session, process), one in self.seen.items() if session == chosen}
        steady = {
            process: one.steady_count / one.steady_s
            for process, one in sorted(ours.items())
            if one.steady_s > 0
        }
        whole = len(steady) == len(ours)
        told: dict[str, Any] = {
            "processes": len(ours),
            "images": sum(one.count for one in ours.values()),
            "images_per_s": sum(steady.values()) if whole else None,
            "images_per_s_of_each": list(steady.values()) if whole else None,
            "images_per_s_of_pipelines": sum(
                one.count / one.generate_s for one in ours.values() if one.generate_s > 0
            ),
        }
        host = sum((one.host_s for one in ours.values()), np.zeros(len(HOST)))
        if whole and np.isfinite(host).all():
            images = sum(one.steady_count for one in ours.values())
            told["host"] = dict(zip(HOST, (host / images).tolist(), strict=True))
        return told


def differences(
    scores: Mapping[str, float], reference: Mapping[str, float], names: Sequence[str]
) -> dict[str, float]:
    """'<name>_difference', ours less the reference's, of each score that both have."""
    return {
        f"{name}_difference": scores[name] - reference[name]
        for name in names
        if name in scores and name in reference
    }
