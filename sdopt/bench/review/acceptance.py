"""Accept a run as the new baseline: first what it would change, then all of it or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdopt.bench.judge.gate import Gate
from sdopt.bench.judge.judging import judged
from sdopt.bench.judge.verdict import Outcome, Verdict
from sdopt.bench.metrics import HISTORY_RULES, METRICS
from sdopt.bench.metrics.metric import Metric, Subject
from sdopt.bench.report.comment import code
from sdopt.bench.review import changelog
from sdopt.bench.review.changes import Change, changed_counts, changed_images, changed_latents
from sdopt.bench.review.known import has_own_prompts, judging, known_of, limits_file, work_set
from sdopt.bench.review.submission import Submission
from sdopt.bench.stored import baselines
from sdopt.bench.stored.accepting import digest_of, store_held
from sdopt.bench.stored.history import next_path, run_content, run_paths
from sdopt.errors import SdoptError
from sdopt.util.files import read_json
from sdopt.util.text import counted
from sdopt.util.writing import writing

COMPARED = (Subject.STORED, Subject.LATENTS, Subject.FLOAT64)
"""Compared anew with what is stored now, where the run left its images and latents."""
NEW = "new: nothing of it is stored"
NOT_FINE = (Outcome.REGRESSION, Outcome.FAULT, Outcome.INSUFFICIENT)
MOST_TOLD = 3
JOURNAL = "baseline-accept"


@dataclass(frozen=True, kw_only=True)
class Review:
    """What accepting a run would change.

    `verdicts` are of each level and metric against what is stored now; `before` has the numbers of
    the newest stored run by level, also of metrics that a limit judges. `counts` says by level in
    what the work is another one. `folder` is that of the history; `seen` are digests of what this
    was made from, by path, and `left_behind` the runs whose values judge no more.
    """

    root: Path
    given: Submission
    verdicts: tuple[Verdict, ...]
    changes: tuple[Change, ...]
    counts: Mapping[str, str]
    folder: Path
    left_behind: int
    seen: Mapping[Path, str | None]
    runs: tuple[Path, ...]
    before: Mapping[str, Mapping[str, Any]]

    @property
    def regressions(self) -> list[Verdict]:
        """What is worse, or cannot be judged, and needs a reason."""
        return [verdict for verdict in self.verdicts if verdict.outcome in NOT_FINE]

    @property
    def replaced(self) -> list[Change]:
        """The files that take the place of other ones."""
        return [change for change in self.changes if not change.is_new]

    @property
    def work_file(self) -> Path:
        """Where the counts stand."""
        name = work_set(self.given.source, self.given.baseline_set)
        return baselines.work_path(self.root, name)

    @property
    def needs_reason(self) -> bool:
        """Whether anything becomes worse or another thing than it was."""
        moved = [level for level, what in self.counts.items() if what != "new"]
        return bool(self.regressions or self.replaced or moved)


def review(root: Path, given: Submission) -> Review:
    """What accepting the run would change. Raises SdoptError for one that was accepted before."""
    folder = root / "history" / given.hardware / given.baseline_set
    runs = judging(folder, given.hardware, given.baseline_set)
    paths = run_paths(folder)
    for path in paths:
        if read_json(path).get("sdopt", {}).get("accepted_from") == given.digest:
            raise SdoptError(f"{given.path} was accepted before: it is {path}")
    work_file = baselines.work_path(root, work_set(given.source, given.baseline_set))
    limits = limits_file(root, given.source, given.baseline_set)
    stored = baselines.load_work(work_file)
    gate = Gate(
        limits=baselines.load_limits(limits),
        limits_file=str(limits),
        own_prompts=has_own_prompts(given.source, given.baseline_set),
        work_stored=stored,
        work_file=str(work_file),
        levels=given.levels,
    )
    scales = (row.get("guidance_scale") for row in given.run.metrics.values())
    known_of(runs, given.hardware, next(scales, None), gate)
    changes = [*changed_images(root, given, gate), *changed_latents(root, given, gate)]
    verdicts = [*_of_numbers(given, gate), *gate.verdicts]
    here = {change.path: digest_of(change.path) for change in changes}
    return Review(
        root=root,
        given=given,
        verdicts=tuple(sorted(verdicts, key=lambda one: [*given.levels].index(one.level))),
        changes=tuple(changes),
        counts=changed_counts(stored, given),
        folder=folder,
        left_behind=_judging_now(gate, given),
        seen={**here, work_file: digest_of(work_file)},
        runs=tuple(paths),
        before=gate.stored,
    )


def _judging_now(gate: Gate, given: Submission) -> int:
    """The most runs that judge any of the run's levels today."""
    lengths = [
        len(values)
        for level, metrics in gate.series.items()
        if level in given.run.metrics
        for values in metrics.values()
    ]
    return max(lengths, default=0)


def _of_numbers(given: Submission, gate: Gate) -> Iterator[Verdict]:
    """A verdict on each number of each level that has a rule."""
    compared = {(one.level, METRICS[one.metric].of) for one in gate.verdicts}
    for name, row in given.run.metrics.items():
        for metric in METRICS.values():
            if row.get(metric.name) is None or (name, metric.of) in compared:
                continue
            if metric.of in COMPARED and given.has_kept:
                continue  # its image is new
            verdict = judged(gate, metric, given.levels[name], row, "as the run says")
            if verdict is not None:
                yield _or_new(gate, metric, verdict)


def _or_new(gate: Gate, metric: Metric, verdict: Verdict) -> Verdict:
    """What is stored for the first time is no fault."""
    known = (
        gate.series.get(verdict.level, {}).get(metric.name)
        if metric.name in HISTORY_RULES
        else gate.work_stored.get(verdict.level)
        if verdict.outcome is Outcome.FAULT
        else (metric.name,)
    )
    if known or verdict.level in gate.redefined:
        return verdict
    return replace(verdict, outcome=Outcome.RECORDED, reason=NEW, stored=None)


def accept(found: Review, reason: str, log: Path | None) -> Path:
    """Store what was reviewed, all of it or nothing; the run's file in the history.

    Raises SdoptError if something became worse and there is no reason, or if the baselines have
    changed since they were looked at.
    """
    reason = " ".join(reason.split())
    if found.needs_reason and not reason:
        raise SdoptError(
            f'{_needing(found)}; say why that is meant: --reason "..."; nothing was written'
        )
    with _held(found):
        _refuse_changed(found)
        path = next_path(found.folder, found.given.name, partial=found.given.is_partial)
        files = {path: run_content(_accepted(found.given, reason))}
        files |= {change.path: change.kept.content for change in found.changes}
        if found.counts:
            stored = baselines.load_work(found.work_file)
            merged = {**stored, **{name: found.given.counts[name] for name in found.counts}}
            files[found.work_file] = baselines.work_content(merged)
        if log is not None:
            files[log] = changelog.with_line(log, line(found, reason))
        levels = [*found.given.run.metrics]
        store_held(found.root, found.given.baseline_set, JOURNAL, files, levels)
    return path


def line(found: Review, reason: str) -> str:
    """The entry of the CHANGELOG: what moved, and why."""
    given = found.given
    parts = [f"levels {', '.join(given.run.metrics)}"]
    parts += [_told(verdict) for verdict in found.regressions]
    for what, is_image in (("images", True), ("latents", False)):
        of_kind = [one for one in found.changes if one.kept.is_image is is_image]
        if of_kind:
            levels = dict.fromkeys(one.kept.level for one in of_kind)
            parts.append(f"{len(of_kind)} {what} of {', '.join(levels)}")
    if found.counts:
        parts.append(f"counts of {', '.join(found.counts)}")
    why = changelog.plain(reason) or "nothing became worse"
    where = f"{code(given.baseline_set)} on {code(given.hardware)}"
    return f"- **Moved baseline** of {where}: {'; '.join(parts)}. Reason: {why}"


def _told(verdict: Verdict) -> str:
    """'final latency_ms 110 -> 123 (+11.8 %, regression)'."""
    measured, stored = verdict.measured, verdict.stored
    where = f"{verdict.level} {verdict.metric}"
    if measured is None or stored is None:
        limit = "" if verdict.limit is None else f", limit {verdict.limit:.6g}"
        value = "" if measured is None else f" {measured:.6g}"
        return f"{where}{value}{limit} ({verdict.outcome.value})"
    change = f"{100 * (measured / stored - 1):+.1f} %, " if stored else ""
    return f"{where} {stored:.6g} -> {measured:.6g} ({change}{verdict.outcome.value})"


def _needing(found: Review) -> str:
    if found.regressions:
        told = [*map(_told, found.regressions[:MOST_TOLD])]
        if more := len(found.regressions) - len(told):
            told.append(f"and {more} more, which --dry-run shows")
        number = len(found.regressions)
        are = "is" if number == 1 else "are"
        return f"{counted(number, 'verdict')} {are} not fine: {'; '.join(told)}"
    files, levels = counted(len(found.replaced), "file"), counted(len(found.counts), "level")
    return f"{files} and the counts of {levels} would be replaced"


def _accepted(given: Submission, reason: str) -> dict[str, Any]:
    """The run as it is stored: where its levels' history starts, and why."""
    block = {name: value for name, value in given.data["sdopt"].items() if name != "kept"}
    block |= {"accepted": True, "accepted_from": given.digest}
    if reason:
        block["reason"] = reason
    return {**given.data, "sdopt": block}


@contextmanager
def _held(found: Review) -> Iterator[None]:
    """Against all who write what this writes, in an order that everybody keeps."""
    with ExitStack() as stack:
        for folder in (found.root, found.folder, found.work_file.parent):
            stack.enter_context(writing(folder))
        yield


def _refuse_changed(found: Review) -> None:
    changed = [path for path, before in found.seen.items() if digest_of(path) != before]
    changed += sorted({*run_paths(found.folder)} ^ {*found.runs})
    if changed:
        raise SdoptError(
            f"{changed[0]} has changed since the run was compared with it; nothing was written; "
            "accept it again"
        )
