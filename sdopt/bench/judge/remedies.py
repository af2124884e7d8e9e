"""What comes after a verdict: the file that it was judged by, and the next command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sdopt.bench.judge.known import Known
from sdopt.bench.judge.rules import is_sound
from sdopt.bench.judge.verdict import Outcome, Verdict
from sdopt.bench.metrics import METRICS
from sdopt.bench.metrics.metric import AsAccepted


def completed(known: Known, verdict: Verdict) -> Verdict:
    """The verdict with its file and its next step, if it has no better ones."""
    next_step = verdict.next_step or _next_step(known, verdict)
    file = verdict.file or known.file_of(METRICS[verdict.metric], verdict.level)
    return replace(verdict, file=file, next_step=next_step)


def _next_step(known: Known, verdict: Verdict) -> str:
    metric, again = METRICS[verdict.metric], known.again(verdict.level)
    if verdict.passed:
        return ""
    if isinstance(metric.rule, AsAccepted) and verdict.outcome is Outcome.FAULT:
        return f"{again} --sdopt-accept  # stores this run's counts"
    if metric.remedy:
        return metric.remedy.format(again=again)
    return _of_history(known, verdict, again)


def _of_history(known: Known, verdict: Verdict, again: str) -> str:
    store = f"{known.command} --benchmark-autosave"
    if known.refusal:
        return known.refusal_hint or f"{store}  # stores a run to compare with"
    if verdict.outcome is Outcome.INSUFFICIENT:
        return f"{again} --benchmark-compare  # on a device that nothing else uses"
    if verdict.outcome is Outcome.FAULT and not _is_measured(verdict):
        return f"{again} --benchmark-compare  # measures it again"
    if verdict.outcome is Outcome.FAULT and verdict.stored is not None:
        anew = "leaves the unsound value behind, and stores images and counts anew"
        return f"{store} --sdopt-accept  # {anew}"
    if verdict.outcome is Outcome.FAULT:
        return f"{store}  # stores a run to compare with"
    settle = f"{again} --sdopt-ab={known.commit or 'BASE'}  # settles it in pairs of runs"
    return f"{settle}\n  or:   {store} --sdopt-accept  # if the new value is meant"


def _is_measured(verdict: Verdict) -> bool:
    """Whether the run itself did its part; a loop that never waits has 0 `host_syncs`."""
    return is_sound(verdict.measured) or (verdict.metric, verdict.measured) == ("host_syncs", 0)


def mended(known: Known, level: str, unusable: Mapping[str, Any]) -> str:
    """The next step where stored files are missing or broken; `unusable` holds the errors.

    Git's before this run's: on a regressed tree those would be the wrong ones.
    """
    accept = f"{known.again(level)} --sdopt-accept  # stores this run's images and latents"
    paths = [path for error in unusable.values() if (path := getattr(error, "path", None))]
    if not paths:
        return accept
    checkout = f"git checkout -- {' '.join(map(str, paths))}  # brings back what was stored"
    return f"{checkout}\n  or:   {accept}, if git has none that is whole"
