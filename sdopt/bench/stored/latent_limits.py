"""Limits of final latents from how far they were seen apart; `limits` beside it writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdopt.bench.metrics import LIMIT_RULES
from sdopt.bench.metrics.latents import relative_distance
from sdopt.bench.stored.baselines import levels_in
from sdopt.bench.stored.latents import FLOAT64, read_latents
from sdopt.errors import BrokenFileError
from sdopt.levels import rounds_coarsely

if TYPE_CHECKING:
    from numpy.typing import NDArray

STORED_AS = {"latents": "float32", "float64": FLOAT64}


def measured_latent_limits(
    folders: Sequence[Path], kind: str = "latents"
) -> dict[str, dict[str, float]]:
    """The limit of every level that the baseline has such latents of: 'latents' or 'float64'.

    All levels share the largest distance, those in float8 theirs (`rounds_coarsely`). A folder may
    lack levels: what differs is a sum of roundings, alike in all of them. Raises BrokenFileError if
    the others have none of them.
    """
    levels = [name for name in levels_in(folders[0]) if _files(folders[0], name, kind)]
    found: dict[str, dict[str, float]] = {}
    for coarse in (False, True):
        some = [name for name in levels if rounds_coarsely(name) is coarse]
        found |= _limits_of(some, folders, kind) if some else {}
    return found


def _limits_of(
    levels: Sequence[str], folders: Sequence[Path], kind: str
) -> dict[str, dict[str, float]]:
    first, *others = folders
    distances = [one for level in levels for one in _latents_apart(level, first, others, kind)]
    if not distances:
        raise BrokenFileError(
            f"{first} has no {STORED_AS[kind]} latents of a level that another folder has too; "
            "make them with python -m studies.latent_spread OUT"
        )
    largest = max(distances)
    allowed = max(LIMIT_RULES[kind].margin * largest, LIMIT_RULES[kind].least)
    row = {"measured": _rounded_up(largest), "limit": _rounded_up(allowed)}
    return {level: dict(row) for level in levels}


def _files(folder: Path, level: str, kind: str) -> dict[str, Path]:
    """The stored latents of a level by prompt."""
    inside = folder / level / FLOAT64 if kind == "float64" else folder / level
    return {path.stem: path for path in sorted(inside.glob("*.safetensors"))}


def _latents_apart(level: str, first: Path, others: Sequence[Path], kind: str) -> list[float]:
    """The distance of each prompt between the first folder and every other that has the level.

    Raises BrokenFileError for latents that only one of two folders has.
    """
    here = _files(first, level, kind)
    values = {name: read_latents(path, STORED_AS[kind])[0] for name, path in here.items()}
    distances = []
    for other in others:
        there = _files(other, level, kind)
        if there and (unpaired := sorted(set(here) ^ set(there))):
            raise BrokenFileError(
                f"latents {unpaired} of level {level!r} are in only one of {first} and {other}"
            )
        distances += [_apart(path, values[name], STORED_AS[kind]) for name, path in there.items()]
    return distances


def _apart(path: Path, values: NDArray[Any], stored_as: str) -> float:
    found = read_latents(path, stored_as)[0]
    if found.shape != values.shape:
        raise BrokenFileError(f"{path} has the shape {found.shape}, the baseline's {values.shape}")
    return relative_distance(found, values)


def _rounded_up(value: float, digits: int = 3) -> float:
    """To so many digits."""
    if not value:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{math.ceil(value / step - 1e-6) * step:.{digits - 1}e}")
