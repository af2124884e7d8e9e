"""What the stored baselines of one hardware and source know, for a run that is not under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sdopt.bench.judge.known import Known
from sdopt.bench.metrics import HISTORY_RULES
from sdopt.bench.stored import baselines
from sdopt.bench.stored.history import StoredRun, find_run, load_until, run_paths, series
from sdopt.levels import LEVELS
from sdopt.util.hardware import HardwareKey

FLOAT16 = "-float16"
"""Of the miniature's baseline set on CUDA."""


def device_of(hardware: str) -> str:
    """'cpu' or 'cuda', by what a hardware key begins with."""
    return "cpu" if hardware.startswith("cpu-") else "cuda"


def work_set(source: str, baseline_set: str) -> str:
    """The set that counts of work are kept by: that of the source, whatever it computes in."""
    return source + baseline_set.removeprefix(source).removeprefix(FLOAT16)


def has_own_prompts(source: str, baseline_set: str) -> bool:
    """Whether the set is of prompts that a user gave."""
    return "--" in baseline_set.removeprefix(source)


def limits_file(root: Path, source: str, baseline_set: str) -> Path:
    """The limits that images of a set are judged by: those of the built-in prompts."""
    rest = baseline_set.removeprefix(source)
    return baselines.limits_path(root, source + (FLOAT16 if rest.startswith(FLOAT16) else ""))


def is_redefined(level: str, row: Mapping[str, Any], scale: float | None) -> str | None:
    """In what a stored measurement is of another level than today's, or of another scale."""
    if level not in LEVELS or scale is None:
        return None
    return baselines.redefinition(row, LEVELS[level], scale)


def judging(folder: Path, hardware: str, baseline_set: str) -> Sequence[StoredRun]:
    """The runs of a folder that the next run is compared with; none if none is stored."""
    if not run_paths(folder):
        return []
    return load_until(find_run(folder, None), HardwareKey(hardware), baseline_set)


def known_of(runs: Sequence[StoredRun], hardware: str, scale: float | None, known: Known) -> Known:
    """`known` with what the runs tell, oldest first, which are all of one folder."""
    known.device = device_of(hardware)
    if not runs:
        return known
    redefined = partial(is_redefined, scale=scale)
    newest = runs[-1]
    known.comparing = True
    known.stored, known.history, known.commit = newest.metrics, str(newest.path), newest.commit
    changes = {name: redefined(name, row) for name, row in newest.metrics.items()}
    known.redefined = {name: what for name, what in changes.items() if what}
    known.series = series(runs, HISTORY_RULES, redefined)
    return known
