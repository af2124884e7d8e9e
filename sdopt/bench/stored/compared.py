"""The history that a run is compared with: none was asked for, it is refused, or it is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sdopt.bench.stored.history import StoredRun
from sdopt.bench.stored.judging import load_judging, newest_of, newest_with
from sdopt.errors import BrokenFileError
from sdopt.util.hardware import Keyed


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
        """'torch 2.12.0 -> 2.13.0' for each version that is no longer the newest run's.

        What that run does not tell, such as one of a time before it was noted, is 'unknown'.
        """
        before = self.newest.environment
        return [
            f"{name} {before.get(name, 'unknown')} -> {value}"
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
