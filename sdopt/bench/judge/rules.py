"""The rules that turn two numbers, or many, into a verdict; no files, no pytest, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from sdopt.bench.judge.statistics import (
    HistoryJudgement,
    PairedJudgement,
    PairedPlan,
    Prior,
    judge_by_history,
    judge_pairs,
)
from sdopt.bench.judge.verdict import Outcome, Verdict, fault
from sdopt.levels import Level

PRIORS: Mapping[str, Mapping[str, Prior]] = {
    "latency_ms": {
        "cuda": Prior(spread=0.02, least_effect=0.01),
        "cuda, one graph": Prior(spread=0.0075, least_effect=0.01),
        "cuda, eager": Prior(spread=0.08, least_effect=0.02),
        "cpu": Prior(spread=0.10, least_effect=0.02),
    },
    "gpu_busy_ms": {"cuda": Prior(spread=0.005, least_effect=0.01)},
    "kernel_launches": {"cuda": Prior(spread=0.005, least_effect=0.02)},
    "peak_allocated_mib": {"cuda": Prior(spread=0.0005, least_effect=0.005)},
}
"""What fresh runs are assumed to differ by until a history shows it, from runs of this project.

Eager pictures on a fast GPU wait for the host's launches, which vary like its own work; unchanged
runs on shared CPU cores differed by up to 31 %: see docs/lab-notes/pitfalls.md.
"""
MATTERS = {"cuda": 0.03, "cuda, one graph": 0.03, "cuda, eager": 0.10, "cpu": 0.05}
"""The change of latency that a paired comparison may not pass over, by the same classes."""
MEMORY_PLAN = PairedPlan(matters=0.01, least_effect=0.005)
ANSWERS = {
    "regression": Outcome.REGRESSION,
    "improvement": Outcome.IMPROVEMENT,
    "pass": Outcome.PASS,
    "insufficient": Outcome.INSUFFICIENT,
}


def noise_class(device: str, level: Level) -> str:
    """What a level's wall time depends on: 'cpu', or on 'cuda' how much of it is the host's."""
    if device != "cuda":
        return device
    if level.whole_graph:
        return "cuda, one graph"
    return "cuda" if level.compiled else "cuda, eager"


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
    if measured > judged.limit:
        return Outcome.REGRESSION, reason
    if judged.drift is not None:
        rise = f"a slow drift: the newest runs are {100 * judged.drift:.1f} % above the best ones"
        return Outcome.REGRESSION, f"{rise}; {reason}"
    return (Outcome.IMPROVEMENT if measured < judged.lower_limit else Outcome.PASS), reason


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
        outcome=ANSWERS[judged.answer],
        reason=_paired_reason(judged, plan),
        measured=median(head),
        stored=median(base),
        detectable=judged.detectable,
        runs=judged.pairs,
    )


def _paired_reason(judged: PairedJudgement, plan: PairedPlan) -> str:
    return (
        f"{100 * judged.change:+.2f} % in {judged.pairs} pairs of fresh runs, between "
        f"{100 * judged.low:+.2f} and {100 * judged.high:+.2f} %; {100 * plan.matters:g} % matter, "
        f"sees {100 * judged.detectable:.1f} % in 4 of 5 such comparisons"
    )


def at_least(level: str, metric: str, measured: float, limit: float | None, what: str) -> Verdict:
    """Pass from `limit` on; recorded without one; a fault if it is NaN. For SSIM."""
    if not math.isfinite(measured):
        outcome, what = Outcome.FAULT, f"the measured value is {measured}, {what}"
    elif limit is None:
        outcome = Outcome.RECORDED
    else:
        outcome = Outcome.PASS if measured >= limit else Outcome.REGRESSION
    return Verdict(
        level=level, metric=metric, outcome=outcome, reason=what, measured=measured, limit=limit
    )


def at_most(level: str, metric: str, measured: float, limit: float, what: str) -> Verdict:
    """Pass up to `limit`; a fault if it is NaN."""
    verdict = at_least(level, metric, -measured, -limit, what)
    return replace(verdict, measured=measured, limit=limit)


def exactly(
    level: str, metric: str, measured: float | None, stored: float | None, changes: str = ""
) -> Verdict:
    """Pass if equal; a fault if either number is missing. `changes` says what differs inside."""
    if measured is None or stored is None:
        side = "measured" if measured is None else "stored"
        return fault(level, metric, f"there is no {side} value", measured, stored)
    # Sums of exact counts in 1e12 differ in the last digits with their order.
    same = math.isclose(measured, stored, rel_tol=1e-12)
    return Verdict(
        level=level,
        metric=metric,
        outcome=Outcome.PASS if same else Outcome.REGRESSION,
        reason="equal" if same else f"has to equal what is stored{changes and ': '}{changes}",
        measured=measured,
        stored=stored,
        limit=stored,
    )


def is_sound(value: float | None) -> bool:
    """Whether something measured can be judged: a number, finite and greater than 0."""
    return isinstance(value, int | float) and math.isfinite(value) and value > 0
