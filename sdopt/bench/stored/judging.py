"""Which runs of a history judge the next one, and the values that they judge by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdopt.bench.stored.history import (
    StoredRun,
    find_run,
    load_runs,
    read_runs,
    run_number,
    run_paths,
)
from sdopt.levels import changed_settings
from sdopt.util.hardware import Keyed


def judging(runs: Sequence[StoredRun]) -> list[StoredRun]:
    """Those of a history's runs, oldest first, that the next run is judged by if it names none.

    All up to the newest whole one, and of what is younger the accepted ones: any other run that
    left benchmarks out counts from the next whole one on, and where there is no whole one.
    """
    whole = _newest_whole(runs)
    if whole is None:
        return [*runs]
    return [run for number, run in enumerate(runs) if number <= whole or run.accepted]


def newest_of(runs: Sequence[StoredRun]) -> StoredRun:
    """What is stored by now, of runs that judge: the newest whole one, with what came after it.

    A level of a younger run has its values, and where it lacks one the older value of the same
    definition. All else is told of the whole run or, where there is none or a run of some levels
    was named, of the newest one.
    """
    whole = _newest_whole(runs)
    newest = runs[whole or 0]
    for run in runs[(whole or 0) + 1 :]:
        rows = {name: _over(newest.metrics.get(name, {}), row) for name, row in run.metrics.items()}
        newest = replace(
            newest,
            metrics={**newest.metrics, **rows},
            judged=tuple(dict.fromkeys((*newest.judged, *run.judged))),
        )
    about = runs[-1] if whole is None or not runs[-1].accepted else runs[whole]
    return replace(about, metrics=newest.metrics, judged=newest.judged)


def newest_with(runs: Sequence[StoredRun], level: str) -> StoredRun:
    """The newest of these that measured a level, which one of them did."""
    return next(run for run in reversed(runs) if level in run.metrics)


def _newest_whole(runs: Sequence[StoredRun]) -> int | None:
    return max((number for number, run in enumerate(runs) if not run.is_partial), default=None)


def _over(older: Mapping[str, Any], row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row, with what it lacks of an older one of the same definition."""
    is_other = older.get("guidance_scale") != row.get("guidance_scale") or changed_settings(
        older.get("level_fields") or {}, row.get("level_fields") or {}
    )
    known = {name: value for name, value in row.items() if value is not None}
    return row if is_other else {**older, **known}


def read_judging_runs(folder: Path) -> list[StoredRun]:
    """The runs that new ones are judged by: each level's from where it was last accepted on."""
    kept: list[StoredRun] = []
    accepted: set[str] = set()
    for run in reversed(judging(read_runs(folder))):
        metrics = {name: row for name, row in run.metrics.items() if name not in accepted}
        if metrics:
            kept.append(replace(run, metrics=metrics))
        if run.accepted:
            accepted.update(run.metrics)
    return kept[::-1]


def load_until(path: Path, hardware: Keyed, baseline_set: str) -> list[StoredRun]:
    """The run of that path and all earlier ones of its folder, checked, oldest first.

    Raises BrokenFileError for a broken or foreign one: a limit made of the rest would be another.
    """
    last = run_number(path)
    paths = [other for other in run_paths(path.parent) if run_number(other) < last]
    return load_runs((*paths, path), hardware, baseline_set)


def load_judging(
    folder: Path,
    wanted: str | None,
    hardware: Keyed,
    baseline_set: str,
    before: Path | None = None,
) -> list[StoredRun]:
    """The runs to judge by: those until the one that `wanted` names, or all that judge for none.

    With `before`, a run of the folder, only earlier ones count. Raises BrokenFileError as
    `find_run` and `load_until` do.
    """
    found = find_run(folder, wanted, before)
    if wanted:
        return load_until(found, hardware, baseline_set)
    paths = run_paths(folder)
    if before is not None:
        paths = [path for path in paths if run_number(path) < run_number(before)]
    return judging(load_runs(paths, hardware, baseline_set))


def series(
    runs: Sequence[StoredRun],
    metrics: Iterable[str],
    is_redefined: Callable[[str, Mapping[str, Any]], object],
) -> dict[str, dict[str, list[float]]]:
    """By stored level and metric (see `newest_of`): the values to judge by, oldest first.

    They reach back to the run that was accepted as a new baseline, or to where the level was
    defined as it is now. A metric that is not known by now has none.
    """
    wanted = [*metrics]
    return {
        level: {
            metric: [*_era(runs, level, metric, is_redefined)][::-1]
            for metric in wanted
            if row.get(metric) is not None
        }
        for level, row in newest_of(runs).metrics.items()
    }


def _era(
    runs: Sequence[StoredRun],
    level: str,
    metric: str,
    is_redefined: Callable[[str, Mapping[str, Any]], object],
) -> Iterator[float]:
    """The metric's values since the level became what it is, newest first."""
    for run in reversed(runs):
        row = run.metrics.get(level)
        if row is None:
            continue
        if is_redefined(level, row):
            return
        if row.get(metric) is None:
            continue
        yield row[metric]
        if run.accepted:
            return
