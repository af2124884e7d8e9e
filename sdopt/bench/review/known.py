"""What the stored baselines of one hardware and source know, for a run that is not under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdopt.bench.judge.known import Known
from sdopt.bench.own.ladder import DECLARED
from sdopt.bench.stored import baselines
from sdopt.bench.stored.compared import Compared
from sdopt.bench.stored.history import StoredRun, run_paths
from sdopt.bench.stored.judging import load_judging
from sdopt.levels import LEVELS, Level
from sdopt.pipelines.workload import NAME_PATTERN
from sdopt.util.hardware import HardwareKey
from sdopt.util.precision import SET_SUFFIXES, without_dtype

OWN_FIELD = "call"
"""What only the levels of a project of its own are stored with."""


def device_of(hardware: str) -> str:
    """'cpu' or 'cuda', by what a hardware key begins with."""
    return "cpu" if hardware.startswith("cpu-") else "cuda"


def work_set(source: str, baseline_set: str) -> str:
    """The set that counts of work are kept by: that of the source, whatever it computes in."""
    return source + without_dtype(baseline_set.removeprefix(source))


def has_own_prompts(source: str, baseline_set: str) -> bool:
    """Whether the set is of prompts that a user gave."""
    return "--" in baseline_set.removeprefix(source)


def limits_file(root: Path, source: str, baseline_set: str) -> Path:
    """The limits that images of a set are judged by: those of the built-in prompts."""
    rest = baseline_set.removeprefix(source)
    own = next((one for one in SET_SUFFIXES if rest.startswith(one)), "")
    return baselines.limits_path(root, source + own)


@dataclass(frozen=True, kw_only=True)
class StoredLevel(Level):
    """A level of a project of its own, as a run tells of it: its code is not at hand."""

    fields: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """What was stored beside the measurement."""
        return dict(self.fields)


def level_of(name: str, row: Mapping[str, Any]) -> Level | None:
    """The level that a row of a run is of: today's, or a project's own as it was then, or none."""
    fields = row.get("level_fields") or {}
    if OWN_FIELD not in fields:
        return LEVELS.get(name)
    declared = {one: fields[one] for one in DECLARED if one in fields}
    if not NAME_PATTERN.fullmatch(name) or declared.keys() != {*DECLARED}:
        return None
    return StoredLevel(**{**declared, "name": name}, fields=fields)


def is_redefined(level: Level | None, row: Mapping[str, Any], scale: float | None) -> str | None:
    """In what a stored measurement is of another level than that, or of another scale."""
    if level is None or scale is None:
        return None
    return baselines.redefinition(row, level, scale)


def judging(folder: Path, hardware: str, baseline_set: str) -> Sequence[StoredRun]:
    """The runs of a folder that the next run is compared with; none if none is stored."""
    if not run_paths(folder):
        return []
    return load_judging(folder, None, HardwareKey(hardware), baseline_set)


def known_of(runs: Sequence[StoredRun], hardware: str, scale: float | None, known: Known) -> Known:
    """`known` with what the runs tell, oldest first, which are all of one folder."""
    known.device = device_of(hardware)
    if not runs:
        return known
    found = Compared(runs=tuple(runs))

    def redefined(name: str, row: Mapping[str, Any]) -> str | None:
        level = known.levels.get(name) or level_of(name, found.newest.metrics[name])
        return is_redefined(level, row, scale)

    known.take(found, redefined)
    return known
