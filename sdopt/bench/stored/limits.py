"""Limits from measured spread: `python -m sdopt.bench.stored.limits IMAGES OTHER_IMAGES...`.

Each folder holds the pictures of one source, `<level>/<prompt>.png`, made by `--sdopt-accept` on
another machine or under other conditions (`python -m studies.latent_spread`), with its final
latents in `latents/` beside `images/`. The first is the baseline; its `limits.json` is written.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdopt.bench.measure.quality import likeness
from sdopt.bench.stored.accepting import check_settled
from sdopt.bench.stored.baselines import SCHEMA, load_picture, read_limits
from sdopt.bench.stored.latent_limits import LATENT_MARGIN, STORED_AS, measured_latent_limits
from sdopt.bench.stored.latents import FLOAT64, latents_beside
from sdopt.bench.stored.soundness import Unsound, check_limit
from sdopt.errors import BrokenFileError, SdoptError
from sdopt.levels import LEVELS, Level, cost_is_comparable, get_level
from sdopt.miniature.scenes import parse_caption, render
from sdopt.util.files import write_whole

Pictures = Mapping[str, NDArray[np.uint8]]

DRIFT_MARGIN = 3.0
"""How many times the largest difference seen between machines may pass.

What differs is a handful of pixels that round the other way, which of them is luck: so the largest
difference of any level counts for all, and the margin covers machines that nobody has tried.
"""
LEAST_DRIFT = 1e-4
"""What may always pass: machines that drew the very same pixels prove no spread of exactly 0."""
LOSS_MARGIN = 0.1
"""The share of the largest loss (1 - SSIM) seen that may come on top, for cost and truth.

Never less than what drift allows.
"""
SIGNS = {"drift": ">=", "cost": ">=", "truth": ">=", "latents": "<=", "float64": "<="}


def measured_limits(folders: Sequence[Path]) -> dict[str, Any]:
    """The limits of every level that the first folder has pictures of."""
    levels = [level for level in LEVELS.values() if (folders[0] / level.name).is_dir()]
    agreement = {level.name: _agreement(level, folders) for level in levels}
    allowed = max(DRIFT_MARGIN * (1 - min(agreement.values())), LEAST_DRIFT)
    return {
        level.name: {
            "drift": _row(agreement[level.name], 1 - allowed),
            **_cost_and_truth(level, folders, allowed),
        }
        for level in levels
    }


def _agreement(level: Level, folders: Sequence[Path]) -> float:
    """The lowest SSIM of any prompt between the first folder and another."""
    first, *others = (_read(folder, level.name) for folder in folders)
    return min(ssim for other in others for ssim in _ssim(first, other))


def _cost_and_truth(
    level: Level, folders: Sequence[Path], allowed: float
) -> dict[str, dict[str, float]]:
    pictures = [_read(folder, level.name) for folder in folders]
    limits = {}
    truths = _truths(folders[0], level.name)
    if truths:
        captioned = [{name: seen[name] for name in truths} for seen in pictures]
        limits["truth"] = _loss_row([_mean(_ssim(seen, truths)) for seen in captioned], allowed)
    if level.reference and cost_is_comparable(level, get_level(level.reference)):
        references = [_read(folder, level.reference) for folder in folders]
        costs = [_mean(_ssim(*pair)) for pair in zip(pictures, references, strict=True)]
        limits["cost"] = _loss_row(costs, allowed)
    return limits


def _loss_row(measured: Sequence[float], allowed: float) -> dict[str, float]:
    lowest = min(measured)
    return _row(lowest, lowest - max(LOSS_MARGIN * (1 - lowest), allowed))


def _row(measured: float, limit: float) -> dict[str, float]:
    return {"measured": round(measured, 7), "limit": round(limit, 7)}


def _read(folder: Path, level: str) -> Pictures:
    paths = sorted((folder / level).glob("*.png"))
    if not paths:
        raise BrokenFileError(
            f"{folder / level} holds no pictures; make them with pytest benchmarks/ "
            "--sdopt-accept --sdopt-baselines DIR"
        )
    return {path.stem: load_picture(path)[0] for path in paths}


def _truths(folder: Path, level: str) -> Pictures:
    """The true renderings of those pictures whose prompt is a scene's caption."""
    truths = {}
    for path in sorted((folder / level).glob("*.png")):
        picture, made_by = load_picture(path)
        try:
            truths[path.stem] = render(parse_caption(made_by.get("prompt", "")), len(picture))
        except ValueError:
            continue  # any prompt of another source
    return truths


def _ssim(pictures: Pictures, others: Pictures) -> list[float]:
    if unpaired := sorted(set(others) ^ set(pictures)):
        raise BrokenFileError(f"pictures {unpaired} are in one folder but not in another")
    for name, other in others.items():
        if pictures[name].shape != other.shape:
            raise BrokenFileError(
                f"the pictures {name!r} are of two sizes, {pictures[name].shape} and {other.shape}"
            )
    return [likeness(pictures[name], other).ssim for name, other in others.items()]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write `limits.json` into the first folder; 2 for folders that cannot be compared."""
    parser = argparse.ArgumentParser(
        prog="python -m sdopt.bench.stored.limits", description=__doc__
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="IMAGES")
    parser.add_argument("--made-by", required=True, help="how the other folders were made")
    parser.add_argument(
        "--latents",
        action="store_true",
        help="renew the limits of latents alone; the others stay as they are, and so do pictures",
    )
    folders = (options := parser.parse_args(arguments)).folders
    if len(folders) < 2:
        parser.error("give the baseline folder and at least one other to compare it with")
    path = folders[0] / "limits.json"
    try:
        for folder in folders:
            check_settled(folder.parent.parent, folder.name)
        if options.latents:
            content = with_latents(read_limits(path), folders, options.made_by)
        else:
            content = _content(folders, options.made_by)
        _check(content["levels"])
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())
    print(f"wrote {path}")
    for name, rows in content["levels"].items():
        cells = (
            f"{kind} {row.get('measured', math.nan):.6g} {SIGNS[kind]} {row['limit']:.6g}"
            for kind, row in rows.items()
        )
        print(f"{name:18} {'  '.join(cells)}")
    return 0


def _check(levels: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise BrokenFileError for limits that the suite would refuse to read."""
    for level, rows in levels.items():
        for kind, row in rows.items():
            try:
                check_limit(kind, row)
            except Unsound as error:
                raise BrokenFileError(
                    f"nothing was written: the folders are too far apart: level {level!r}: {error}"
                ) from error


def _content(folders: Sequence[Path], made_by: str) -> dict[str, Any]:
    """All limits, those of latents if the baseline has any."""
    content = {
        "schema": SCHEMA,
        "made_by": made_by,
        "drift": f"worst SSIM seen between machines; limit {DRIFT_MARGIN:g} x the largest "
        f"difference of any level, at most {1 - LEAST_DRIFT:g}",
        "cost_and_truth": f"lowest mean SSIM seen; limit {LOSS_MARGIN:g} of that loss below, "
        "or what drift allows",
        "levels": measured_limits(folders),
    }
    if not latents_beside(folders[0]).is_dir():
        return content
    return with_latents(content, folders, made_by)


def with_latents(
    content: Mapping[str, Any], folders: Sequence[Path], made_by: str
) -> dict[str, Any]:
    """The same with the limits of latents measured anew. Raises BrokenFileError without any."""
    levels = {name: dict(rows) for name, rows in content["levels"].items()}
    beside = [*map(latents_beside, folders)]
    for kind in STORED_AS:
        if kind == "float64" and not any(beside[0].glob(f"*/{FLOAT64}/*")):
            continue  # a GPU draws none
        for name, row in measured_latent_limits(beside, kind).items():
            levels.setdefault(name, {})[kind] = row
    described = {
        "latents": "largest relative L2 of any level's final latents seen between machines; limit "
        f"{LATENT_MARGIN:g} x that; float64: the same of those drawn in it",
        "latents_made_by": made_by,
    }
    return {**content, **described, "levels": levels}


if __name__ == "__main__":
    sys.exit(main())
