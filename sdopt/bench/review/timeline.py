"""The stored runs of one hardware and source over time, by level and metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from sdopt.bench.judge.known import Known
from sdopt.bench.judge.statistics import judge_by_history
from sdopt.bench.metrics import HISTORY_RULES, METRICS
from sdopt.bench.review.known import device_of, is_redefined, level_of
from sdopt.bench.review.stores import Place
from sdopt.bench.stored.history import RUN_NAME, StoredRun, judging, newest_of, read_runs, series
from sdopt.errors import BrokenFileError, UnknownNameError
from sdopt.levels import LEVELS


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run's value. `judges` is whether later runs are judged by it."""

    run: str
    date: str | None
    commit: str | None
    value: float
    accepted: bool
    judges: bool
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Line:
    """The values of one level and metric, oldest first.

    `median`, `spread` (the standard deviation between runs, as a fraction, that the judge believes)
    and `limit` are of those that judge; None where a metric has no such thing.
    """

    level: str
    metric: str
    unit: str
    median: float
    spread: float | None
    limit: float | None
    points: tuple[Point, ...]


def timelines(
    places: Sequence[Place], levels: Sequence[str] = (), metrics: Sequence[str] = ()
) -> list[tuple[Place, list[Line]]]:
    """The lines of each history: of these levels and metrics, or of all that are judged by it.

    Raises UnknownNameError for a level without stored runs, or a metric that there is not.
    """
    for name in metrics:
        if name not in METRICS:
            raise UnknownNameError("metric", name, METRICS)
    runs = {place: read_runs(place.folder) for place in places}
    stored = dict.fromkeys(name for each in runs.values() for run in each for name in run.metrics)
    for name in levels:
        if name not in stored:
            raise UnknownNameError("level", name, stored, "these are stored")
    return [(place, _timeline(place, each, levels, metrics)) for place, each in runs.items()]


def _timeline(
    place: Place, runs: Sequence[StoredRun], levels: Sequence[str], metrics: Sequence[str]
) -> list[Line]:
    stored = {name for run in runs for name in run.metrics}
    ordered = sorted(stored, key=lambda name: [*LEVELS, name].index(name))
    positions = judging_values(runs, metrics or [*HISTORY_RULES])
    newest = newest_of(judging(runs))
    known = Known(device=device_of(place.hardware), stored=newest.metrics)
    return [
        line
        for level in ordered
        if not levels or level in levels
        for metric in metrics or HISTORY_RULES
        if (line := _line(level, metric, runs, positions[level][metric], known))
    ]


def judging_values(
    runs: Sequence[StoredRun], metrics: Sequence[str]
) -> Mapping[str, Mapping[str, set[int]]]:
    """By level and metric the positions of the runs that the next one is judged by."""
    now = [runs.index(run) for run in judging(runs)]
    found = {
        level: {metric: set[int]() for metric in metrics}
        for level in dict.fromkeys(name for run in runs for name in run.metrics)
    }
    for level, by_metric in eras([runs[number] for number in now], metrics).items():
        found[level] |= {name: {now[at] for at in era} for name, era in by_metric.items()}
    return found


def eras(
    runs: Sequence[StoredRun], metrics: Sequence[str] | None = None
) -> dict[str, dict[str, list[int]]]:
    """By stored level and metric, all for None, where those of the runs stand that judge it.

    See `history.series`, of runs that judge.
    """
    newest = newest_of(runs).metrics
    levels = {name: level_of(name, row) for name, row in newest.items()}

    def redefined(name: str, row: Mapping[str, Any]) -> str | None:
        return is_redefined(levels[name], row, newest[name].get("guidance_scale"))

    marked = [replace(run, metrics=_marked(run.metrics, at)) for at, run in enumerate(runs)]
    wanted = METRICS if metrics is None else metrics
    return {
        level: {name: [int(at) for at in era] for name, era in by_metric.items()}
        for level, by_metric in series(marked, wanted, redefined).items()
    }


def judged_by(run: Path) -> list[str] | None:
    """The levels that a run of a history judges; None for another file, or a broken history."""
    if not RUN_NAME.fullmatch(run.name):
        return None
    try:
        runs = judging(read_runs(run.parent))
    except BrokenFileError:
        return None
    here = {number for number, one in enumerate(runs) if one.path.name == run.name}
    return [
        level
        for level, by_metric in eras(runs).items()
        if any(here & {*era} for era in by_metric.values())
    ]


def _marked(metrics: Mapping[str, Mapping[str, Any]], at: int) -> dict[str, dict[str, Any]]:
    """The rows with their run's position in place of each number."""
    return {
        level: {
            name: at if name in METRICS and value is not None else value
            for name, value in row.items()
        }
        for level, row in metrics.items()
    }


def _line(
    level: str, metric: str, runs: Sequence[StoredRun], judging: set[int], known: Known
) -> Line | None:
    points = [
        Point(
            run=run.path.name,
            date=run.date,
            commit=run.commit,
            value=run.metrics[level][metric],
            accepted=run.accepted,
            judges=number in judging,
            reason=run.reason,
        )
        for number, run in enumerate(runs)
        if level in run.metrics and run.metrics[level].get(metric) is not None
    ]
    if not points:
        return None
    values = [point.value for point in points if point.judges] or [p.value for p in points]
    newest = next(run.metrics[level] for run in reversed(runs) if level in run.metrics)
    rule, own = HISTORY_RULES.get(metric), level_of(level, newest)
    prior = rule.prior(known.device, own) if rule and own else None
    judgement = None
    if prior is not None and all(value > 0 for value in values):
        judgement = judge_by_history(values[-1], values, prior, known.comparisons)
    return Line(
        level=level,
        metric=metric,
        unit=METRICS[metric].unit,
        median=median(values),
        spread=judgement.spread if judgement else None,
        limit=judgement.limit if judgement else None,
        points=tuple(points),
    )
