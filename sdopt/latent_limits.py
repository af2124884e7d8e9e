"""Limits of final latents from how far they were seen apart; `sdopt.limits` writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from sdopt.errors import BrokenFileError
from sdopt.latents import read_latents
from sdopt.levels import LEVELS
from sdopt.measure.latents import relative_distance

LATENT_MARGIN = 4.0
"""How many times the largest distance of latents seen may pass, for machines nobody has tried."""
LEAST_LATENT_DRIFT = 1e-6
"""What may always pass: a few roundings of float32."""


def measured_latent_limits(folders: Sequence[Path]) -> dict[str, dict[str, float]]:
    """The limit of every level that the baseline has latents of; the families share the largest.

    A folder may lack levels: what differs is the sum of roundings, alike in all of a family.
    """
    first, *others = folders
    levels = [level for level in LEVELS.values() if (first / level.name).is_dir()]
    seen: dict[str, list[float]] = {level.scheduler: [] for level in levels}
    for level in levels:
        seen[level.scheduler] += _latents_apart(level.name, first, others)
    if unseen := [family for family, distances in seen.items() if not distances]:
        raise BrokenFileError(
            f"no level of {', '.join(unseen)} has latents in another folder; make them with "
            "python -m sdopt.spread OUT"
        )
    largest = {family: max(distances) for family, distances in seen.items()}
    return {
        level.name: {
            "measured": _rounded_up(largest[level.scheduler]),
            "limit": _rounded_up(max(LATENT_MARGIN * largest[level.scheduler], LEAST_LATENT_DRIFT)),
        }
        for level in levels
    }


def _latents_apart(level: str, first: Path, others: Sequence[Path]) -> list[float]:
    """The distance of each prompt between the first folder and every other that has the level.

    Raises BrokenFileError for latents that only one of two folders has.
    """
    here = {path.stem: read_latents(path)[0] for path in (first / level).glob("*.safetensors")}
    distances = []
    for other in (folder / level for folder in others if (folder / level).is_dir()):
        there = {path.stem: read_latents(path)[0] for path in other.glob("*.safetensors")}
        if unpaired := sorted(set(here) ^ set(there)):
            raise BrokenFileError(f"latents {unpaired} are in one of {first / level}, {other} only")
        distances += [relative_distance(there[name], values) for name, values in here.items()]
    return distances


def _rounded_up(value: float, digits: int = 3) -> float:
    """To so many digits, never less than the value."""
    if not value:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{math.ceil(value / step) * step:.{digits - 1}e}")
