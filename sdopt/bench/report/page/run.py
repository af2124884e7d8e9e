"""A run as a report needs it: what a history keeps of it, and all that stands beside that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sdopt.bench.stored.history import StoredRun, read_run
from sdopt.bench.stored.soundness import GROUPS, is_number
from sdopt.errors import SdoptError
from sdopt.levels import LEVELS, Level
from sdopt.util.files import damaged
from sdopt.util.hardware import HardwareKey


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the suite.

    `rounds_s` are the timed rounds by level. `commit` and `machine` are what pytest-benchmark noted
    of the revision and the machine: nobody has checked what stands in them.
    """

    stored: StoredRun
    hardware: HardwareKey
    baseline_set: str
    source: str
    date: str
    commit: Mapping[str, Any]
    machine: Mapping[str, Any]
    levels: Mapping[str, Level]
    rounds_s: Mapping[str, Sequence[float]]

    @property
    def rows(self) -> Mapping[str, Mapping[str, Any]]:
        """What was measured, by level."""
        return self.stored.metrics

    @property
    def name(self) -> str:
        """Its file's, without the suffix."""
        return self.stored.path.stem

    @property
    def device(self) -> str:
        """'cuda' or 'cpu'."""
        return "cpu" if self.hardware.key.startswith("cpu-") else "cuda"


def read(path: Path) -> Run:
    """A run of any hardware, checked. Raises BrokenFileError naming the file."""
    stored, data = read_run(path)
    block = data["sdopt"]
    _check_groups(path, stored)
    return Run(
        stored=stored,
        hardware=HardwareKey(str(block["hardware"])),
        baseline_set=str(block.get("baseline_set", "")),
        source=str(block.get("source", "")),
        date=str(data.get("datetime", "")),
        commit=data.get("commit_info") or {},
        machine=data["machine_info"],
        levels={name: _level(path, name, row) for name, row in stored.metrics.items()},
        rounds_s={one["extra_info"]["level"]: one["stats"]["data"] for one in data["benchmarks"]},
    )


def _check_groups(path: Path, stored: StoredRun) -> None:
    """Raise BrokenFileError for measurements by name that are no numbers: they are drawn."""
    for level, row in stored.metrics.items():
        for group in GROUPS:
            for name, value in row.get(group, {}).items():
                if not is_number(value):
                    raise damaged(path, f"is not sound: [{level}] {group}.{name} is no number")


def _level(path: Path, name: str, row: Mapping[str, Any]) -> Level:
    """The level as it was when it was measured; of fields that are unknown here nothing is kept."""
    stored = row.get("level_fields")
    if stored is None:
        return LEVELS.get(name) or Level(name=name, why="")
    known = {field.name: stored[field.name] for field in fields(Level) if field.name in stored}
    try:
        return Level(**{"why": "", **known, "name": name})
    except SdoptError as error:
        raise damaged(path, f"holds a level that there cannot be: {error}") from error
