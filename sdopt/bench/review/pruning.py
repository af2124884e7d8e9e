"""Which stored runs may go: those that judge nothing, and the middle of long histories."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdopt.bench.review.stores import Place
from sdopt.bench.review.timeline import eras as eras_of
from sdopt.bench.stored.history import (
    FIRST_RUNS,
    NEWEST_RUNS,
    StoredRun,
    find_run,
    read_runs,
    run_paths,
)
from sdopt.bench.stored.judging import judging
from sdopt.errors import SdoptError
from sdopt.util.git import is_tracked
from sdopt.util.writing import writing


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What may be removed of a history, oldest first, and what else would be.

    `unsaved` are runs that git does not hold as they are: nothing could bring them back.
    """

    place: Place
    runs: tuple[Path, ...]
    removed: tuple[Path, ...]
    unsaved: tuple[Path, ...]


def pruning(place: Place, newest: int = NEWEST_RUNS) -> Pruning:
    """What no level needs: each keeps its first FIRST_RUNS and its `newest` runs that judge it."""
    if newest < FIRST_RUNS:
        raise SdoptError(
            f"--keep is {newest}; a search for a slow drift needs {FIRST_RUNS} or more"
        )
    runs = read_runs(place.folder)
    needed = _needed(runs, place.folder, newest)
    removed = [run.path for number, run in enumerate(runs) if number not in needed]
    unsaved = _unsaved(removed)
    return Pruning(
        place=place,
        runs=tuple(run.path for run in runs),
        removed=tuple(removed),
        unsaved=tuple(path for path in removed if path in unsaved),
    )


def prune(found: Pruning, *, unsaved: bool = False) -> list[Path]:
    """Remove them, oldest first, so that what is left is a history at any moment; what went.

    Raises SdoptError if there are runs that git does not hold and nobody said that those may go,
    or if the history has changed since it was looked at.
    """
    if found.unsaved and not unsaved:
        raise SdoptError(
            f"{len(found.unsaved)} of the runs are not in git as they are, such as "
            f"{found.unsaved[0]}: nothing could bring them back; commit them first, or give "
            "--unsaved; nothing was removed"
        )
    with writing(found.place.folder):
        if tuple(run_paths(found.place.folder)) != found.runs:
            raise SdoptError(f"{found.place.folder} has changed meanwhile; prune it again")
        for path in found.removed:
            path.unlink()
    return [*found.removed]


def _needed(runs: Sequence[StoredRun], folder: Path, newest: int) -> set[int]:
    """The positions of the runs that must stay.

    Judged is by those of `history.judging`, and by all once the next whole one is stored.
    """
    whole = [run.path for run in runs].index(find_run(folder, None))
    now = [runs.index(run) for run in judging(runs)]
    eras = [*_eras(runs, now), *_eras(runs, range(len(runs)))]
    needed = {*range(whole, len(runs))}
    for _, era in eras:
        needed |= {*era[:FIRST_RUNS], *era[-newest:]}
    while ends := {*_ends(runs, eras, needed)} - needed:
        needed |= ends
    return needed


def _eras(runs: Sequence[StoredRun], positions: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
    """Each level with the positions of the runs that judge it, of those at these positions."""
    for level, by_metric in eras_of([runs[number] for number in positions]).items():
        if era := sorted({positions[at] for each in by_metric.values() for at in each}):
            yield level, era


def _ends(
    runs: Sequence[StoredRun], eras: Iterable[tuple[str, list[int]]], needed: set[int]
) -> Iterator[int]:
    """The run that ended each level's former history, as long as an older one stays.

    Where that was an accepted run it is the first that judges now. Else it is one of another
    definition: without it the older ones would judge again if they are of today's.
    """
    for level, era in eras:
        before = [number for number in range(era[0]) if level in runs[number].metrics]
        if before and not runs[era[0]].accepted and needed & {*before[:-1]}:
            yield before[-1]


def _unsaved(paths: Sequence[Path]) -> set[Path]:
    """Those that git does not hold, or holds otherwise."""
    return {path for path in paths if not _is_in_git(path)}


def _is_in_git(path: Path) -> bool:
    """Whether git holds it as it is now."""
    if not is_tracked(path, folder=path.parent):
        return False
    command = ("git", "-C", str(path.parent), "status", "--porcelain", "--", path.name)
    changed = subprocess.run(command, capture_output=True, check=False)
    return changed.returncode == 0 and not changed.stdout.strip()
