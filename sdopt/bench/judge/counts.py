"""Counts against other counts: the same judgement for a run and for pairs of runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from sdopt.bench.judge.rules import exactly
from sdopt.bench.judge.verdict import Outcome, Verdict
from sdopt.bench.metrics.metric import Metric, Row


def same_count(
    metric: Metric, level: str, measured: Row, reference: Row, accepted: Row | None = None
) -> Verdict:
    """Judge one count of a run by the stored ones, or of a pair's head by the base's.

    More than there is a regression. Less is an improvement of what the metric calls better the
    lower it is, and else a regression too: a step that is left out is fast, and another image.
    A change that is `accepted`, as the counts stored in the working tree have it, passes.
    """
    name = metric.name
    value, before = measured.get(name), reference.get(name)
    changes = ", ".join(changed_work(reference, measured))
    verdict = exactly(level, name, value, before, changes, metric.better)
    meant = (accepted or {}).get(name)
    if verdict.outcome is not Outcome.REGRESSION or meant is None:
        return verdict
    if exactly(level, name, value, meant).outcome is Outcome.PASS:
        reason = f"changed as it was accepted: {changes or f'{before:g} -> {value:g}'}"
        return replace(verdict, outcome=Outcome.PASS, reason=reason)
    return verdict


def changed_work(stored: Row, measured: Row) -> list[str]:
    """'unet called 20 -> 19 times' and the like for each part and module whose work changed."""
    changes = []
    for name, before, now in _pairs(stored.get("calls"), measured.get("calls")):
        if before != now:
            changes.append(f"{name} called {before} -> {now} times")
    for name, before, now in _pairs(stored.get("tflop_by_module"), measured.get("tflop_by_module")):
        if not math.isclose(before, now, rel_tol=1e-9):
            changes.append(f"{name} {before:.6g} -> {now:.6g} TFLOP")
    for name, before, now in _pairs(stored.get("kernels_by_part"), measured.get("kernels_by_part")):
        if before != now:
            changes.append(f"{name} {before} -> {now} kernels")
    return changes


def _pairs(
    stored: Mapping[str, float] | None, measured: Mapping[str, float] | None
) -> Iterator[tuple[str, float, float]]:
    """Name, stored and measured value of what either side holds; nothing without both sides."""
    if stored is None or measured is None:
        return
    for name in {**stored, **measured}:
        yield name, stored.get(name, 0), measured.get(name, 0)
