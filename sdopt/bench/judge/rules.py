"""The rules that turn two numbers, or many, into a verdict; no files, no pytest, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from sdopt.bench.judge.statistics import (
    HistoryJudgement,
    PairedJudgement,
    PairedPlan,
    judge_by_history,
    judge_pairs,
)
from sdopt.bench.judge.verdict import Outcome, Verdict, fault
from sdopt.bench.metrics.metric import ROUNDING, Better, Pairs, Prior

CHANGES = {"regression": 1, "improvement": -1, "pass": 0}
"""What a judgement of pairs says of the value: more, less, or nothing beyond chance."""


def outcome_of(change: int, better: Better) -> Outcome:
    """What a change beyond chance is, of a run and of pairs: above 0 is more, below 0 less."""
    if change == 0:
        return Outcome.PASS
    improves = {Better.LOWER: change < 0, Better.HIGHER: change > 0, Better.NEITHER: False}
    return Outcome.IMPROVEMENT if improves[better] else Outcome.REGRESSION


def by_history(
    level: str,
    metric: str,
    measured: float | None,
    stored: Sequence[float],
    prior: Prior,
    comparisons: int = 1,
) -> Verdict:
    """Judge by the values of the stored runs, oldest first.

    A fault if a number is missing, NaN or not > 0.
    """
    unsound = _unsound(level, metric, measured, stored)
    if unsound is not None or measured is None:
        return unsound or fault(level, metric, "there is no measured value")
    judged = judge_by_history(measured, stored, prior, comparisons)
    outcome, reason = _history_answer(measured, judged)
    return Verdict(
        level=level,
        metric=metric,
        outcome=outcome,
        reason=reason,
        measured=measured,
        stored=judged.center,
        limit=judged.limit,
        detectable=judged.detectable,
        runs=judged.runs,
    )


def _unsound(
    level: str, metric: str, measured: float | None, stored: Sequence[float]
) -> Verdict | None:
    """The fault of the first number that cannot be judged, if there is one."""
    newest = stored[-1] if stored else None
    for side, values in (("measured", (measured,)), ("stored", stored or (None,))):
        for value in values:
            shown = value if side == "stored" else newest
            if value is None:
                return fault(level, metric, f"there is no {side} value", measured, shown)
            if not is_sound(value):
                return fault(level, metric, f"the {side} value is {value!r}", measured, shown)
    return None


def _history_answer(measured: float, judged: HistoryJudgement) -> tuple[Outcome, str]:
    runs = "the stored run" if judged.runs == 1 else f"the median of {judged.runs} stored runs"
    change, allowed = measured / judged.center - 1, judged.limit / judged.center - 1
    reason = (
        f"{100 * change:+.1f} % against {runs}, {100 * allowed:.1f} % may be chance, "
        f"sees {100 * judged.detectable:.1f} % in 4 of 5 runs"
    )
    if measured <= judged.limit and judged.drift is not None:
        rise = f"a slow drift: the newest runs are {100 * judged.drift:.1f} % above the best ones"
        return outcome_of(1, Better.LOWER), f"{rise}; {reason}"
    above, below = measured > judged.limit, measured < judged.lower_limit
    return outcome_of(above - below, Better.LOWER), reason


def plan_of(pairs: Pairs, noise: str, comparisons: int) -> PairedPlan:
    """When to look at pairs and what matters; `comparisons` of a run share one error rate."""
    return PairedPlan(
        comparisons=comparisons, matters=pairs.matters[noise], least_effect=pairs.least_effect
    )


def by_pairs(
    level: str, metric: str, base: Sequence[float], head: Sequence[float], plan: PairedPlan
) -> Verdict | None:
    """Judge pairs of fresh runs, of the base revision and of the head; None means: add pairs.

    A fault if a number is NaN or not > 0.
    """
    for side, values in (("base", base), ("head", head)):
        for value in values:
            if not is_sound(value):
                return fault(level, metric, f"a value of the {side} is {value!r}")
    judged = judge_pairs(base, head, plan)
    if judged is None or judged.answer is None:
        return None
    return Verdict(
        level=level,
        metric=metric,
        outcome=_paired_outcome(judged.answer),
        reason=_paired_reason(judged, plan),
        measured=median(head),
        stored=median(base),
        detectable=judged.detectable,
        runs=judged.pairs,
    )


def _paired_outcome(answer: str) -> Outcome:
    if answer == "insufficient":
        return Outcome.INSUFFICIENT
    return outcome_of(CHANGES[answer], Better.LOWER)


def _paired_reason(judged: PairedJudgement, plan: PairedPlan) -> str:
    return (
        f"{100 * judged.change:+.2f} % in {judged.pairs} pairs of fresh runs, between "
        f"{100 * judged.low:+.2f} and {100 * judged.high:+.2f} %; {100 * plan.matters:g} % matter, "
        f"sees {100 * judged.detectable:.1f} % in 4 of 5 such comparisons"
    )


def at_least(level: str, metric: str, measured: float, limit: float | None, what: str) -> Verdict:
    """Pass from `limit` on; recorded without one; a fault if it is NaN. For SSIM."""
    return _limited(level, metric, measured, limit, what, limit is not None and measured >= limit)


def at_most(level: str, metric: str, measured: float, limit: float | None, what: str) -> Verdict:
    """Pass up to `limit`; recorded without one; a fault if it is NaN. For distances."""
    return _limited(level, metric, measured, limit, what, limit is not None and measured <= limit)


def _limited(
    level: str, metric: str, measured: float, limit: float | None, what: str, within: bool
) -> Verdict:
    if not math.isfinite(measured):
        outcome, what = Outcome.FAULT, f"the measured value is {measured}, {what}"
    elif limit is None:
        outcome = Outcome.RECORDED
    else:
        outcome = Outcome.PASS if within else Outcome.REGRESSION
    return Verdict(
        level=level, metric=metric, outcome=outcome, reason=what, measured=measured, limit=limit
    )


def exactly(
    level: str,
    metric: str,
    measured: float | None,
    stored: float | None,
    changes: str = "",
    better: Better = Better.NEITHER,
) -> Verdict:
    """Pass if equal; a fault if either number is missing. `changes` says what differs inside.

    What differs is a regression unless the difference is `better`.
    """
    if measured is None or stored is None:
        side = "measured" if measured is None else "stored"
        return fault(level, metric, f"there is no {side} value", measured, stored)
    same = math.isclose(measured, stored, rel_tol=ROUNDING)
    outcome = outcome_of(0 if same else -1 if measured < stored else 1, better)
    words = {
        Outcome.PASS: "equal",
        Outcome.IMPROVEMENT: "better than what is stored",
        Outcome.REGRESSION: "has to equal what is stored",
    }
    return Verdict(
        level=level,
        metric=metric,
        outcome=outcome,
        reason=words[outcome] + ("" if same or not changes else f": {changes}"),
        measured=measured,
        stored=stored,
        limit=stored,
    )


def is_sound(value: float | None) -> bool:
    """Whether something measured can be judged: a number, finite and greater than 0."""
    return isinstance(value, int | float) and math.isfinite(value) and value > 0
