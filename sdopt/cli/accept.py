"""`sdopt baseline accept`: what a run would change, and the run as the new baseline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdopt.cli.options import Baselines, Json, named_run, print_json, shown
from sdopt.cli.progress import progress
from sdopt.cli.suite import check_installed
from sdopt.errors import SdoptError
from sdopt.util.text import counted

if TYPE_CHECKING:
    from sdopt.bench.judge.verdict import Verdict
    from sdopt.bench.review.acceptance import Review

BASELINES, CHANGELOG = Path("baselines"), "CHANGELOG.md"
NOT_CONFIRMED = 1

Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and stop.")]


def accept(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN.json", help="What --benchmark-json wrote, or a stored run."),
    ],
    reason: Annotated[
        str,
        typer.Option("--reason", metavar="TEXT", help="Why: what became worse needs one."),
    ] = "",
    baselines: Baselines = BASELINES,
    changelog: Annotated[
        Path | None,
        typer.Option(
            "--changelog",
            metavar="FILE",
            help="Gets a line (default: CHANGELOG.md beside the baselines, if there is one).",
        ),
    ] = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Make a run the new baseline: its numbers, images, latents and counts, all or nothing.

    Shows old against new first. The images lie in RUN.kept/ beside RUN.json. A new history of the
    run's levels starts with it. What became worse, or another image, needs --reason.
    """
    check_installed()
    from sdopt.bench.review.acceptance import accept as store
    from sdopt.bench.review.acceptance import line, review
    from sdopt.bench.review.submission import read_submission

    log = changelog or _beside(baselines)
    with progress("comparing with what is stored", None):
        _recover(baselines, write=not dry_run)
        with named_run(run, baselines):
            submitted = read_submission(run)
        found = review(baselines, submitted)
    wanted_line = line(found, " ".join(reason.split()))
    if as_json:
        print_json(_as_dict(found, wanted_line))
    else:
        _print_review(found)
    if dry_run:
        if not as_json:
            print("nothing was written (--dry-run)")
        return 0
    if found.needs_reason and not reason.strip():
        store(found, "", log)  # says what needs one
    if not yes and not confirmed(f"make it the baseline in {baselines}?", as_json):
        return NOT_CONFIRMED
    path = store(found, reason, log)
    if not as_json:
        print(f"stored {path}{_after(found)}")
        print(f"{log}: {shown(wanted_line)}" if log else f"no CHANGELOG: {shown(wanted_line)}")
    return 0


def _recover(root: Path, *, write: bool) -> None:
    """Complete what was killed before, so that there is one state to compare with."""
    from sdopt.bench.review.stores import unfinished
    from sdopt.bench.session.leftovers import tidy
    from sdopt.bench.stored.accepting import in_the_way

    if write and root.is_dir():
        for line in tidy(root):
            print(shown(line), file=sys.stderr)
    if left := unfinished(root):
        changed = " ".join(map(str, in_the_way(root, left[0]))) or root
        raise SdoptError(
            f"{left[0]} says that an accept is under way or was interrupted, and that files are "
            f"partly new; wait for it, run this without --dry-run, or bring the old ones back: git "
            f"checkout -- {changed}"
        )


def _beside(root: Path) -> Path | None:
    path = root.absolute().parent / CHANGELOG
    return path if path.is_file() else None


def confirmed(question: str, quiet: bool) -> bool:
    """Ask; raises SdoptError where nobody can answer."""
    if quiet or not sys.stdin.isatty():
        raise SdoptError("nobody is there to confirm it; give --yes; nothing was written")
    if typer.confirm(question):
        return True
    print("nothing was written")
    return False


def _print_review(found: Review) -> None:
    given = found.given
    print(shown(f"{given.path}: source {given.baseline_set} on {given.hardware}"))
    commit, date = given.run.commit or "of no known commit", (given.run.date or "")[:19]
    print(shown(f"commit {commit} {date}"))
    print(f"  {'level':18s} {'metric':22s} {'old':>12s} {'new':>12s} {'change':>9s}  verdict")
    for verdict in found.verdicts:
        before = found.before.get(verdict.level, {}).get(verdict.metric)
        print(shown(f"  {_row(verdict, before)}"))
    if not given.has_kept:
        print("images, latents and counts: the run left none, so they stay")
    for change in found.changes:
        print(
            shown(f"  {change.kept.kind} {change.kept.level}/{change.kept.prompt}: {change.what}")
        )
    for level, what in found.counts.items():
        print(shown(f"  counts {level}: {what}"))
    if given.has_kept and not (found.changes or found.counts):
        print("images, latents and counts: as they are stored")


def _row(verdict: Verdict, before: float | None) -> str:
    """Old is what the metric was judged by or, where a limit judges, what it was before."""
    old, new = before if verdict.stored is None else verdict.stored, verdict.measured
    change = f"{100 * (new / old - 1):+.2f} %" if old and new is not None else ""
    cells = ["-" if value is None else f"{value:.6g}" for value in (old, new)]
    return (
        f"{verdict.level:18s} {verdict.metric:22s} {cells[0]:>12s} {cells[1]:>12s} {change:>9s}  "
        f"{verdict.outcome.value}"
    )


def _after(found: Review) -> str:
    told = ""
    if found.left_behind:
        judge = "judges" if found.left_behind == 1 else "judge"
        told += f"; {counted(found.left_behind, 'earlier run')} {judge} its levels no more"
    if found.given.is_partial:
        told += "; it left benchmarks out: other levels are judged by what they were before"
    return told


def _as_dict(found: Review, line: str) -> dict[str, Any]:
    given = found.given
    return {
        "run": str(given.path),
        "hardware": given.hardware,
        "source": given.baseline_set,
        "commit": given.run.commit,
        "needs_reason": found.needs_reason,
        "changelog_line": line,
        "verdicts": [_verdict(one) for one in found.verdicts],
        "files": [
            {
                "file": str(one.path),
                "level": one.kept.level,
                "prompt": one.kept.prompt,
                "what": one.what,
            }
            for one in found.changes
        ],
        "counts": dict(found.counts),
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    from sdopt.bench.report.verdicts import as_dict

    return as_dict(verdict)
