"""Change points in a history: where a level's time moved and stayed, by PELT of `ruptures`.

They describe; they judge nothing. A verdict is about one run, and has its own statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from sdopt.bench.judge.statistics import shrunk_spread
from sdopt.bench.metrics.metric import Prior

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_RUNS = 4
"""Fewer have no two sides of two runs each."""
LEAST_SIDE = 2
PENALTY = 5.0
"""Times the variance times log n. Simulated: of unchanged histories of 6, 15 and 40 runs 1.3, 0.3
and 0 % have a change point with it; with 2, the least that theory asks for, 15, 9 and 6 %. A step
of three standard deviations in the middle is found in 61, 74 and 98 % of them."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """From the run with that index on the value is another: the medians of both sides."""

    index: int
    before: float
    after: float

    @property
    def percent(self) -> float:
        """Of the value before."""
        return 100 * (self.after / self.before - 1)


def change_points(values: Sequence[float], prior: Prior) -> list[Change]:
    """Where the mean logarithm of values > 0, oldest first, changes by more than their spread.

    The spread is what the gate believes of these values, `shrunk_spread`: it comes from neighbours,
    so a step does not widen it. Changes below what is never called one are left out.
    """
    if len(values) < LEAST_RUNS:
        return []
    import numpy as np
    import ruptures

    logs = [math.log(value) for value in values]
    spread, _ = shrunk_spread(logs, prior.spread)
    signal: NDArray[np.float64] = np.array(logs).reshape(-1, 1) / spread
    search = ruptures.Pelt(model="l2", min_size=LEAST_SIDE, jump=1).fit(signal)
    ends: list[int] = search.predict(pen=PENALTY * math.log(len(logs)))
    starts = [0, *ends[:-1]]
    centers = [median(values[start:end]) for start, end in zip(starts, ends, strict=True)]
    found = [
        Change(index=start, before=before, after=after)
        for start, before, after in zip(starts[1:], centers, centers[1:], strict=False)
    ]
    return [one for one in found if abs(one.percent) > 100 * prior.least_effect]
