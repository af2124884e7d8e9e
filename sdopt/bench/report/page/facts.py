"""What a report is made of: the run, what it is judged by, the verdicts, what came before."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from sdopt.bench.judge.judging import judged_row
from sdopt.bench.judge.known import Known
from sdopt.bench.judge.remedies import completed
from sdopt.bench.judge.verdict import Outcome, Verdict
from sdopt.bench.metrics import METRICS
from sdopt.bench.metrics.metric import AsAccepted
from sdopt.bench.report.page.run import Run, read
from sdopt.bench.stored import baselines
from sdopt.bench.stored.compared import (
    Compared,
    History,
    NotCompared,
    Refused,
    find_history,
)
from sdopt.bench.stored.history import RUN_NAME, StoredRun, find_run, history_folder, run_paths
from sdopt.bench.stored.judging import load_judging, load_until
from sdopt.errors import BrokenFileError
from sdopt.util.precision import without_dtype

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
"""What a word of a run may be to become part of a path: no run leads out of the folder."""

MOST_RUNS = 200
"""In a chart."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a report says, as data; nothing of it is text to be trusted.

    `past` are the stored runs before this one, oldest first, and `other` that whose values are the
    stored ones. `unjudged` are the tests that `other` judged and that this run did not. `notes` say
    what could not be judged, and why.
    """

    run: Run
    root: Path
    known: Known
    verdicts: Sequence[Verdict]
    other: StoredRun | None = None
    past: Sequence[StoredRun] = ()
    unjudged: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=tuple)

    def of_level(self, level: str) -> list[Verdict]:
        """The verdicts on one level."""
        return [verdict for verdict in self.verdicts if verdict.level == level]

    def runs_with(self, level: str) -> list[StoredRun]:
        """The newest runs that measured a level, oldest first; this one is the last."""
        runs = [run for run in (*self.past, self.run.stored) if level in run.metrics]
        return runs[-MOST_RUNS:]


def gather(path: Path, root: Path, against: str | None = None) -> Facts:
    """Read and judge a run by another one and those before it, or by what `root` has stored.

    Raises BrokenFileError for a file that is broken or, if it was named, of other hardware.
    """
    run = read(path)
    folder = _folder(root, run)
    history = _history(run, folder, against)
    known, notes = _known(run, root, history)
    verdicts = [
        completed(known, verdict)
        for name, row in run.rows.items()
        for verdict in judged_row(known, run.levels[name], _judgeable(known, row))
    ]
    other = history.newest if isinstance(history, Compared) else None
    past, broken = _past(run, folder, history)
    return Facts(
        run=run,
        root=root,
        known=known,
        verdicts=[_worded(known, verdict) for verdict in verdicts],
        other=other,
        past=past,
        unjudged=[test for test in other.judged if test not in run.stored.judged] if other else [],
        notes=[*notes, *broken],
    )


def plain(name: str) -> bool:
    """Whether it can be part of a path, and leads nowhere else."""
    return PLAIN_NAME.fullmatch(name) is not None


def _folder(root: Path, run: Run) -> Path | None:
    """Where the history of this hardware and set is."""
    if not (plain(run.hardware.key) and plain(run.baseline_set)):
        return None
    return history_folder(root, run.hardware, run.baseline_set)


def _is_in(path: Path, folder: Path | None) -> bool:
    return (
        folder is not None
        and RUN_NAME.fullmatch(path.name) is not None
        and path.resolve().parent == folder.resolve()
    )


def _history(run: Run, folder: Path | None, against: str | None) -> History:
    """What the gate would have compared with: what was stored before this run."""
    path, key, name = run.stored.path, run.hardware, run.baseline_set
    before = path if _is_in(path, folder) else None
    if against is not None:
        where = folder or path.parent
        if Path(against).is_file() and path.exists() and path.samefile(against) and before is None:
            raise BrokenFileError(
                f"--against {against} is the run itself; name another one, or drop --against"
            )
        return Compared(runs=tuple(load_judging(where, against, key, name, before)))
    if folder is None or not folder.is_dir():
        return NotCompared()
    try:
        find_run(folder, None, before)
    except BrokenFileError:
        return NotCompared()
    return find_history(folder, None, key, name, before)


def _known(run: Run, root: Path, history: History) -> tuple[Known, list[str]]:
    """What the run's numbers are judged by, and notes on what is not at hand."""
    known = Known(
        comparing=not isinstance(history, NotCompared),
        device=run.device,
        own_prompts="--" in run.baseline_set.removeprefix(run.source),
    )
    notes = _stored_limits(known, run, root)
    match history:
        case NotCompared():
            notes.append(
                "No stored run of this hardware and source is at hand, so that time, memory and "
                "GPU work are recorded and not judged."
            )
        case Refused() as refused:
            known.refusal = refused.reason
        case Compared() as found:
            known.take(found, partial(_redefined, run))
    return known, notes


def _redefined(run: Run, level: str, stored: Mapping[str, Any]) -> str | None:
    """In what a stored measurement of a level is of other settings than this run's."""
    if level not in run.levels:
        return None
    row = run.rows[level]
    return baselines.redefinition(stored, run.levels[level], row.get("guidance_scale"))


def _stored_limits(known: Known, run: Run, root: Path) -> list[str]:
    """Limits and counts, which are the same for every machine, and what of them is not at hand."""
    if not plain(run.baseline_set) or not plain(run.source):
        return ["Limits and counts are not looked up: the run's source has no plain name."]
    own = without_dtype(run.baseline_set.removeprefix(run.source))
    limits = baselines.limits_path(root, run.baseline_set.removesuffix(own))
    work = baselines.work_path(root, run.source + own)
    known.limits, known.limits_file = baselines.load_limits(limits), str(limits)
    known.work_stored, known.work_file = baselines.load_work(work), str(work)
    notes = []
    if not limits.exists():
        notes.append(f"Images are judged by the default limits: there is no {limits}.")
    if not work.exists():
        notes.append(f"Counts of work are not judged: there is no {work}.")
    return notes


def _judgeable(known: Known, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row without the counts of work where none are stored: the suite judges those by a file."""
    if known.work_stored:
        return row
    counts = {name for name, one in METRICS.items() if isinstance(one.rule, AsAccepted)}
    return {name: value for name, value in row.items() if name not in counts}


def _worded(known: Known, verdict: Verdict) -> Verdict:
    """The verdict as a report says it.

    It is asked for no comparison by an option, and it suggests no command with a name in it that a
    shell might take for more than a name.
    """
    if not plain(verdict.level):
        verdict = replace(verdict, next_step="")
    if verdict.outcome is Outcome.RECORDED and not known.comparing and verdict.limit is None:
        return replace(verdict, reason="there is no stored run to compare with")
    return verdict


def _past(run: Run, folder: Path | None, history: History) -> tuple[list[StoredRun], list[str]]:
    """The runs that a history chart shows before this one, and a note if they cannot be read."""
    if isinstance(history, NotCompared):
        return [], []
    compared = list(history.runs) if isinstance(history, Compared) else []
    if compared and folder is not None and not _is_in(compared[-1].path, folder):
        return compared, []
    if folder is None:
        return compared, []
    paths = run_paths(folder)
    if _is_in(run.stored.path, folder):
        paths = paths[: paths.index(folder / run.stored.path.name)]
    try:
        return (load_until(paths[-1], run.hardware, run.baseline_set) if paths else []), []
    except BrokenFileError as error:
        return compared, [f"Not all of the history can be read: {error}"]
