"""Histories: the stored runs of one hardware and baseline set, and what is judged by them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from sdopt.bench.stored import baselines, schema
from sdopt.bench.stored.old_names import with_current_names
from sdopt.bench.stored.soundness import Unsound, check_run
from sdopt.errors import BrokenFileError
from sdopt.levels import changed_settings
from sdopt.util.files import damaged, read_json, write_whole
from sdopt.util.hardware import Keyed
from sdopt.util.text import counted
from sdopt.util.writing import writing

RUN_NAME = re.compile(r"(\d{4,})_.*\.json")
PARTIAL = "_partial"
"""How the name of a run ends that left benchmarks out."""
FIRST_RUNS, NEWEST_RUNS = 5, 40
"""Of those that judge a level, `sdopt baseline prune` keeps the first, which a slow drift is seen
against (one window of it), and the newest: endless ones would allow chance an eighth less."""
MOST_CHOICES = 5
"""In a message."""
KEPT_RUNS = FIRST_RUNS + NEWEST_RUNS


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """One run of a history: its metrics per level and the tests that reached a verdict.

    `accepted` is whether it moved the baseline: its levels are not judged by earlier runs. `commit`
    is what it ran, None if that is not known; `date` is when, `reason` why it was accepted.
    """

    path: Path
    metrics: Mapping[str, Mapping[str, Any]]
    judged: tuple[str, ...]
    environment: Mapping[str, str]
    accepted: bool = False
    commit: str | None = None
    date: str | None = None
    reason: str | None = None

    @property
    def is_partial(self) -> bool:
        """Whether it left benchmarks out."""
        return self.path.stem.endswith(PARTIAL)


def history_folder(root: Path, hardware: Keyed, baseline_set: str) -> Path:
    """Where the runs of this hardware and baseline set are kept."""
    return root / "history" / hardware.key / baseline_set


def kept_folder(run: Path) -> Path:
    """The folder beside a run's JSON with the images, latents and counts that it made."""
    return run.with_suffix(".kept")


def save_run(folder: Path, name: str, run: Mapping[str, Any], *, partial: bool = False) -> Path:
    """Store a run under the next free number and return its path; never replaces a file.

    `partial` is for a run that left benchmarks out: see `judging`.
    """
    content = run_content(run)
    with writing(folder):
        path = next_path(folder, name, partial=partial)
        write_whole(path, content)
    return path


def run_content(run: Mapping[str, Any]) -> bytes:
    """What `save_run` writes. Raises ValueError for a number that JSON cannot hold."""
    return json.dumps(run, indent=1, allow_nan=False).encode()


def next_path(folder: Path, name: str, *, partial: bool = False) -> Path:
    """The file of a run to come; its number is free as long as the folder is held."""
    number = max((_number(path) for path in run_paths(folder)), default=0) + 1
    return folder / f"{number:04}_{name}{PARTIAL if partial else ''}.json"


def find_run(folder: Path, wanted: str | None, before: Path | None = None) -> Path:
    """The newest run of a folder, or the newest that `wanted` names by number, name or path.

    A whole run comes before any partial one, or storing one level would hide all the others.
    With `before`, a run of the folder, only earlier ones count. Raises BrokenFileError that names
    the newest choices if there is none.
    """
    if wanted and Path(wanted).is_file() and not _is_later(Path(wanted), before):
        return Path(wanted)
    runs = run_paths(folder)
    if before is not None:
        runs = [path for path in runs if _number(path) < _number(before)]
    found = [path for path in runs if _is_called(path, wanted)] if wanted else runs
    if not found:
        which = f"run {wanted!r}" if wanted else "stored run"
        than = f" before {before.name}" if before is not None and wanted else ""
        raise BrokenFileError(
            f"no {which}{than} for this hardware and source in {folder}{_choices(runs)}"
        )
    whole = [path for path in found if not path.stem.endswith(PARTIAL)]
    return (whole or found)[-1]


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


def _is_later(path: Path, before: Path | None) -> bool:
    """Whether it is that run, or a later one of its folder."""
    if before is None or path.resolve().parent != before.resolve().parent:
        return False
    return _number(path) >= _number(before)


def _choices(runs: Sequence[Path]) -> str:
    """The newest runs, and how many more there are."""
    if not runs:
        return ""
    older = runs[:-MOST_CHOICES]
    more = f", or {counted(len(older), 'older one')} from {older[0].name} on" if older else ""
    return f"; choose from: {', '.join(path.name for path in runs[-MOST_CHOICES:])}{more}"


def _is_called(path: Path, wanted: str) -> bool:
    """Whether `wanted` is the run's number, its name, or how its file name begins."""
    if wanted.isdecimal():
        return _number(path) == int(wanted)
    return path.name.startswith(wanted) or path.stem.split("_", 1)[1] == wanted


def run_paths(folder: Path) -> list[Path]:
    """The files of a folder's runs, oldest first."""
    paths = [path for path in folder.glob("*.json") if RUN_NAME.fullmatch(path.name)]
    return sorted(paths, key=_number)


def _number(path: Path) -> int:
    found = RUN_NAME.fullmatch(path.name)
    return int(found.group(1)) if found else 0


def read_runs(folder: Path) -> list[StoredRun]:
    """Every run of a history folder, oldest first. Raises BrokenFileError if there is none."""
    paths = run_paths(folder)
    if not paths:
        raise BrokenFileError(f"{folder} holds no stored run; give history/<hardware>/<source>")
    return [read_run(path)[0] for path in paths]


def read_run(path: Path) -> tuple[StoredRun, dict[str, Any]]:
    """A stored run of any hardware, checked, and the whole file with today's names."""
    data, block = _checked(path)
    return _stored_run(path, data, block), data


def load_run(path: Path, hardware: Keyed, baseline_set: str) -> StoredRun:
    """A stored run, checked. Raises BrokenFileError for a broken or foreign one."""
    data, block = _checked(path)
    for name, here in (("hardware", hardware.key), ("baseline_set", baseline_set)):
        if block.get(name) != here:
            raise BrokenFileError(
                f"{path} is of another {name.replace('_', ' ')}: {block.get(name)!r}, "
                f"this run is {here!r}; only runs of the same are compared: name one of those, or "
                "store one with --benchmark-autosave"
            )
    return _stored_run(path, data, block)


def _checked(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The whole file and its block of this suite."""
    data = read_json(path)
    block = data.get("sdopt")
    if not isinstance(block, dict) or block.get("schema") != baselines.SCHEMA:
        raise BrokenFileError(
            f"{path} was not written by this suite: its 'sdopt' block is "
            f"{'of another schema' if block else 'missing'}"
        )
    return data, block


def _stored_run(path: Path, data: dict[str, Any], block: dict[str, Any]) -> StoredRun:
    try:
        for entry in data["benchmarks"]:
            entry["extra_info"] = with_current_names(entry["extra_info"])
        check_run(data, block)
        run = StoredRun(
            path=path,
            metrics=_metrics(data["benchmarks"]),
            judged=tuple(block["judged"]),
            environment=dict(block["environment"]),
            accepted=block.get("accepted", False),
            commit=_commit(data.get("commit_info") or {}),
            date=data.get("datetime"),
            reason=block.get("reason"),
        )
    except Unsound as error:
        raise damaged(path, f"is not sound: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        schema.check(path, data, "run")  # says it better, if it is not of the schema
        raise damaged(path, f"is incomplete: {error!r}") from error
    schema.check(path, data, "run")
    return run


def _metrics(benchmarks: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Metrics per level, with the latency from the raw rounds."""
    metrics = {}
    for entry in benchmarks:
        info = dict(entry["extra_info"])
        info["latency_ms"] = 1e3 * median(entry["stats"]["data"])
        metrics[info["level"]] = info
    return metrics


def _commit(commit_info: Mapping[str, Any]) -> str | None:
    """The abbreviated commit that pytest-benchmark noted, if there was one."""
    commit = commit_info.get("id")
    return commit[:12] if isinstance(commit, str) and re.fullmatch("[0-9a-f]{40}", commit) else None


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
    last = _number(path)
    paths = [other for other in run_paths(path.parent) if _number(other) < last]
    return _loaded((*paths, path), hardware, baseline_set)


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
        paths = [path for path in paths if _number(path) < _number(before)]
    return judging(_loaded(paths, hardware, baseline_set))


def _loaded(paths: Iterable[Path], hardware: Keyed, baseline_set: str) -> list[StoredRun]:
    loaded = []
    for each in paths:
        try:
            loaded.append(load_run(each, hardware, baseline_set))
        except BrokenFileError as error:
            error.path = each
            raise
    return loaded


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
