"""The history that a run is compared with: none was asked for, it is refused, or it is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sdopt.bench.judge.known import Known
from sdopt.bench.metrics import HISTORY_RULES
from sdopt.bench.stored.history import (
    StoredRun,
    load_judging,
    newest_of,
    newest_with,
    series,
)
from sdopt.errors import BrokenFileError
from sdopt.util.hardware import Keyed

Redefined = Callable[[str, Mapping[str, Any]], str | None]


@dataclass(frozen=True)
class NotCompared:
    """No comparison was asked for."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """There is nothing to compare with, and why.

    `broken` is the file to blame, if it is one.
    """

    reason: str
    broken: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The runs to compare with, oldest first; there is at least one."""

    runs: tuple[StoredRun, ...]

    @cached_property
    def newest(self) -> StoredRun:
        """The run whose values are the stored ones, with those of what was accepted after it."""
        return newest_of(self.runs)

    @property
    def files(self) -> dict[str, Path]:
        """By level the file of its stored values, where that is another one than `newest`'s."""
        found = {name: newest_with(self.runs, name).path for name in self.newest.metrics}
        return {name: path for name, path in found.items() if path != self.newest.path}

    def changes(self, environment: Mapping[str, str]) -> list[str]:
        """'torch 2.12.0 -> 2.13.0' for each version that is no longer the newest run's."""
        before = self.newest.environment
        return [
            f"{name} {before.get(name)} -> {value}"
            for name, value in environment.items()
            if before.get(name) != value
        ]


History = NotCompared | Refused | Compared


def find_history(
    folder: Path,
    wanted: str | None,
    hardware: Keyed,
    baseline_set: str,
    before: Path | None = None,
) -> History:
    """The runs of a folder that judge, or up to the wanted one; refused if one is broken."""
    try:
        runs = load_judging(folder, wanted, hardware, baseline_set, before)
    except BrokenFileError as error:
        return Refused(reason=str(error), broken=error.path)
    return Compared(runs=tuple(runs))


def take(known: Known, found: Compared, redefined: Redefined) -> None:
    """Let what is known be what those runs tell.

    `redefined` says in what a stored row of a level is of other settings than the level to judge.
    """
    newest = found.newest
    known.comparing = True
    known.stored, known.history, known.commit = newest.metrics, str(newest.path), newest.commit
    known.files = {name: str(path) for name, path in found.files.items()}
    changes = {name: redefined(name, row) for name, row in newest.metrics.items()}
    known.redefined = {name: what for name, what in changes.items() if what}
    known.series = series(found.runs, HISTORY_RULES, redefined)
