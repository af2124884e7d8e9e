"""One metric of one level against what is known: the rule that the metric names decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from sdopt.bench.judge.counts import same_count
from sdopt.bench.judge.known import Known
from sdopt.bench.judge.rules import at_least, at_most, by_history
from sdopt.bench.judge.verdict import Outcome, Verdict, fault, recorded
from sdopt.bench.metrics import METRICS
from sdopt.bench.metrics.metric import (
    MEANS,
    AsAccepted,
    Better,
    ByHistory,
    Fixed,
    Measured,
    Metric,
    Never,
    Proven,
    Row,
    Shown,
    Subject,
)
from sdopt.levels import Level


def judged_row(known: Known, level: Level, row: Row) -> list[Verdict]:
    """A verdict on each number of a level that a stored run holds.

    What only the process can prove that measured it has none here.
    """
    here = (metric for metric in METRICS.values() if row.get(metric.name) is not None)
    verdicts = (judged(known, metric, level, row, metric.of.value) for metric in here)
    return [verdict for verdict in verdicts if verdict]


def is_gated(known: Known, metric: Metric, row: Row) -> bool:
    """Whether a measured limit counts.

    None does for means over prompts of a user's own, nor for the likeness to a reference whose
    sampler draws other noise.
    """
    if metric.of in MEANS and known.own_prompts:
        return False
    return metric.of is not Subject.REFERENCE or bool(row.get("cost_is_comparable", True))


def judged(known: Known, metric: Metric, level: Level, row: Row, what: str = "") -> Verdict | None:
    """The verdict on a value of the level's row; None for a metric that is shown only.

    `what` words the reason where a limit decides.
    """
    rule = metric.rule
    match rule:
        case ByHistory():
            return _by_history(known, metric, rule, level, row)
        case AsAccepted():
            return same_count(metric, level.name, row, known.work_stored.get(level.name, {}))
        case Never():
            return _never(metric, level, row[metric.name])
        case Measured():
            gated = is_gated(known, metric, row)
            limits = known.limits.get(level.name, {}) if gated else {}
            return _within_measured(metric, rule, level, row, limits, what)
        case Fixed():
            return _within(metric, level, row, rule.by_device[known.device], what)
        case Shown() | Proven():
            return None
        case _:
            assert_never(rule)


def _by_history(known: Known, metric: Metric, rule: ByHistory, level: Level, row: Row) -> Verdict:
    """By the stored runs; without a prior the value has to equal the newest one."""
    name, measured = metric.name, row.get(metric.name)
    if not known.comparing:
        return recorded(level.name, name, measured)
    if known.refusal:
        return fault(level.name, name, known.refusal, measured)
    if level.name in known.redefined:
        reason = f"the stored run measured another level: {known.redefined[level.name]}"
        return fault(level.name, name, reason, measured)
    prior = rule.prior(known.device, level)
    if prior is None:
        return same_count(metric, level.name, row, known.stored.get(level.name, {}))
    stored = known.series.get(level.name, {}).get(name, ())
    return by_history(level.name, name, measured, stored, prior, known.comparisons)


def _never(metric: Metric, level: Level, count: int) -> Verdict:
    return Verdict(
        level=level.name,
        metric=metric.name,
        outcome=Outcome.PASS if count == 0 else Outcome.REGRESSION,
        reason="none after warm-up" if count == 0 else "there has to be none after warm-up",
        measured=count,
        limit=0,
    )


def _within_measured(
    metric: Metric,
    rule: Measured,
    level: Level,
    row: Row,
    limits: Mapping[str, float],
    what: str,
) -> Verdict:
    limit = limits.get(rule.kind)
    if limit is None and rule.default is not None:
        limit = rule.default
        what += " (default limit: none was measured for this level)"
    return _within(metric, level, row, limit, what)


def _within(metric: Metric, level: Level, row: Row, limit: float | None, what: str) -> Verdict:
    within = at_least if metric.better is Better.HIGHER else at_most
    return within(level.name, metric.name, row[metric.name], limit, what)
