"""When a difference is a change: the statistics behind the gate, on plain numbers.

The unit is the fresh process run. Rounds within a run only estimate that run's median: they agree
with each other far better than two runs do, so a test that counts them as independent samples
alarms at nothing (docs/evidence/false-alarms.md has the rates). All work is done on
logarithms, where a change of x % means the same at any size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from scipy.special import ndtri, stdtrit

from sdopt.bench.metrics.metric import Prior

FAMILY_ERROR = 0.01
"""How often a whole run of the suite, with all its comparisons, may blame a healthy commit."""
DRIFT_SHARE = 0.2
"""The part of a comparison's error that the search for slow drift may spend."""
PRIOR_WEIGHT = 4.0
"""How many degrees of freedom the spread has that is assumed before any run was seen."""
CUT_BIAS = 0.92
"""What cutting normal differences at 2.5 medians leaves of their root mean square."""
DRIFT_WINDOW = 5
LEAST_DRIFT_RUNS = 6
MOST_LAG, RUNS_A_LAG = 4, 5
"""Runs are compared with those up to four before them, where there are five runs for each lag."""
POWER = 0.8
"""Of the minimum detectable effect: the chance to see it."""


@dataclass(frozen=True, kw_only=True)
class HistoryJudgement:
    """One value against the runs stored before it.

    `limit` and `lower_limit` are in the metric's unit; between them nothing is said to have
    changed. `detectable` is the smallest change, as a fraction, that would be seen in 4 of 5 runs.
    `drift` is the rise of the newest runs over the best earlier ones if that is more than chance
    and the value itself is above the center, else None.
    """

    center: float
    spread: float
    runs: int
    limit: float
    lower_limit: float
    detectable: float
    drift: float | None


def judge_by_history(
    measured: float, stored: Sequence[float], prior: Prior, comparisons: int = 1
) -> HistoryJudgement:
    """Judge one value by the earlier runs' values, oldest first, all of them greater than 0.

    The limit is that of Student's t for one new observation (a prediction interval), with the
    spread between runs shrunk towards the prior while the history is short. `comparisons` is how
    many such judgements one run of the suite makes; they share FAMILY_ERROR (Bonferroni).
    """
    logs = [math.log(value) for value in stored]
    center = median(logs)
    spread, freedom = shrunk_spread(logs, prior.spread)
    error = FAMILY_ERROR / comparisons
    # The variance of a median of n is pi / 2 times that of their mean.
    apart = spread * math.sqrt(1 + math.pi / 2 / len(logs))
    width = student_t((1 - DRIFT_SHARE) * error, freedom) * apart
    reach = max(width, math.log1p(prior.least_effect))
    drift = _drift([*logs, math.log(measured)], spread, freedom, prior, DRIFT_SHARE * error)
    return HistoryJudgement(
        center=math.exp(center),
        spread=spread,
        runs=len(logs),
        limit=math.exp(center + reach),
        lower_limit=math.exp(center - reach),
        detectable=math.expm1(reach + float(ndtri(POWER)) * apart),
        # Whoever repairs a drift is not to blame for the runs before.
        drift=drift if math.log(measured) > center else None,
    )


def shrunk_spread(logs: Sequence[float], prior: float) -> tuple[float, float]:
    """The standard deviation between runs and its degrees of freedom.

    Estimated from differences between neighbours, which a slow drift hardly widens (von Neumann
    1941), each cut at 2.5 times their median so that one bad run does not either. A machine's mood
    outlasts a run, so neighbours agree better than runs do: the largest estimate of several lags
    counts. Shrunk towards the prior: on the logarithmic scale where less was seen than assumed, on
    that of variances, which gives more, where more was.
    """
    steps = len(logs) - 1
    if steps < 1:
        return prior, PRIOR_WEIGHT
    lags = range(1, max(1, min(MOST_LAG, len(logs) // RUNS_A_LAG)) + 1)
    seen = max(_spread_at(lag, logs, prior) for lag in lags)
    freedom = 0.6 * steps  # successive differences overlap: n - 1 of them are worth less
    if seen < prior:
        weight = PRIOR_WEIGHT / (PRIOR_WEIGHT + freedom)
        seen = max(seen, prior / 100)  # identical values prove no spread of exactly 0
        spread = math.exp(weight * math.log(prior) + (1 - weight) * math.log(seen))
        return spread, PRIOR_WEIGHT + freedom
    # The more the prior proves too small, the less it may talk the spread down.
    trust = PRIOR_WEIGHT * (prior / seen) ** 2
    weight = trust / (trust + freedom)
    spread = math.sqrt(weight * prior**2 + (1 - weight) * seen**2)
    # Never fewer than before any run was seen: t of 1 or 2 would allow any value whatever.
    return spread, max(PRIOR_WEIGHT, trust + freedom)


def _spread_at(lag: int, logs: Sequence[float], prior: float) -> float:
    """The standard deviation that differences between runs so far apart speak of."""
    steps = [abs(after - before) for before, after in zip(logs, logs[lag:], strict=False)]
    # Where most runs agree to the last digit, as counts do, the prior says what one bad run is.
    most = 2.5 * (median(steps) or prior)
    return math.sqrt(sum(min(step, most) ** 2 for step in steps) / (2 * len(steps))) / CUT_BIAS


def _drift(
    logs: Sequence[float], spread: float, freedom: float, prior: Prior, error: float
) -> float | None:
    """How far the newest window's median lies above the best earlier one, if beyond chance."""
    if len(logs) < LEAST_DRIFT_RUNS:
        return None
    size = min(DRIFT_WINDOW, len(logs) // 2)
    newest = median(logs[-size:])
    earlier = [median(logs[i : i + size]) for i in range(len(logs) - 2 * size + 1)]
    # A median of few values spreads 1.25 times as far as their mean; windows overlap, so that
    # only every size-th of them is a new chance to be wrong.
    deviation = 1.25 * spread * math.sqrt(2 / size)
    chances = max(1, len(logs) // size - 1)
    limit = max(student_t(error / chances, freedom) * deviation, math.log1p(prior.least_effect))
    rise = newest - min(earlier)
    return math.expm1(rise) if rise > limit else None


def student_t(error: float, freedom: float) -> float:
    """The value that Student's t exceeds with probability `error`."""
    return float(-stdtrit(freedom, error))


@dataclass(frozen=True, kw_only=True)
class PairedPlan:
    """When a paired comparison looks at its pairs, and what it may say then.

    `looks` are numbers of pairs; `shares` how the allowed error is split between them. A true
    change of `matters` is passed over with a probability of `miss` at most. A change smaller than
    `least_effect` is never called one. `floor` is the least spread of the pairs that is believed.
    """

    looks: tuple[int, ...] = (4, 6, 8)
    shares: tuple[float, ...] = (0.15, 0.25, 0.60)
    comparisons: int = 1
    matters: float = 0.03
    least_effect: float = 0.01
    miss: float = 0.01
    floor: float = 0.0005


@dataclass(frozen=True, kw_only=True)
class PairedJudgement:
    """What the pairs say so far.

    `change` is head over base less 1; `low` and `high` bound it, each at its own error rate.
    `answer` is 'regression', 'improvement', 'pass', 'insufficient' (the last look was not clear)
    or None for: add pairs. `detectable` is the smallest change seen in 4 of 5 such comparisons
    if their pairs spread like these.
    """

    pairs: int
    change: float
    low: float
    high: float
    detectable: float
    answer: str | None


def judge_pairs(
    base: Sequence[float], head: Sequence[float], plan: PairedPlan
) -> PairedJudgement | None:
    """Judge pairs of fresh runs, values > 0; None between two looks.

    A paired t-test on the logarithms, looked at a planned number of times. Each look spends its
    share of the error and no more (Bonferroni), so adding pairs until the answer is clear does not
    inflate it. A regression needs its lower bound above 0 and its estimate above `least_effect`; a
    pass needs its upper bound below `matters`.
    """
    pairs = len(base)
    if pairs not in plan.looks:
        return None
    share = plan.shares[plan.looks.index(pairs)]
    steps = [math.log(b / a) for a, b in zip(base, head, strict=True)]
    change = sum(steps) / pairs
    spread = math.sqrt(sum((step - change) ** 2 for step in steps) / (pairs - 1))
    error = max(spread, plan.floor) / math.sqrt(pairs)
    blame = student_t(share * FAMILY_ERROR / plan.comparisons, pairs - 1) * error
    clear = student_t(share * plan.miss, pairs - 1) * error
    judged = PairedJudgement(
        pairs=pairs,
        change=math.expm1(change),
        low=math.expm1(change - blame),
        high=math.expm1(change + clear),
        detectable=math.expm1(
            max(blame, math.log1p(plan.least_effect)) + float(ndtri(POWER)) * error
        ),
        answer=_paired_answer(change, blame, clear, plan),
    )
    if judged.answer is None and pairs == plan.looks[-1]:
        return replace(judged, answer="insufficient")
    return judged


def _paired_answer(change: float, blame: float, clear: float, plan: PairedPlan) -> str | None:
    least = math.log1p(plan.least_effect)
    if change > max(blame, least):
        return "regression"
    if change < -max(blame, least):
        return "improvement"
    return "pass" if change + clear < math.log1p(plan.matters) else None
