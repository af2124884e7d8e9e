"""Limits from measured spread: `python -m sdopt.bench.stored.limits IMAGES OTHER_IMAGES...`.

Each folder holds the images of one source, `<level>/<prompt>.png`, made by `--sdopt-accept` on
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

from sdopt.bench.metrics import LIMIT_RULES, METRICS, metrics_of
from sdopt.bench.metrics.latents import LATENT_MARGIN
from sdopt.bench.metrics.metric import Better, Compare, Measured, Metric, Subject
from sdopt.bench.stored.accepting import check_settled
from sdopt.bench.stored.baselines import SCHEMA, levels_in, read_image, read_limits
from sdopt.bench.stored.latent_limits import STORED_AS, measured_latent_limits
from sdopt.bench.stored.latents import FLOAT64, latents_beside
from sdopt.bench.stored.soundness import Unsound, check_limit
from sdopt.errors import BrokenFileError, SdoptError
from sdopt.levels import LEVELS, Level, cost_is_comparable, get_level, rounds_coarsely
from sdopt.miniature.scenes import parse_caption, render
from sdopt.util.files import write_whole

Images = Mapping[str, NDArray[np.uint8]]

SIGNS = {
    metric.rule.kind: ">=" if metric.better is Better.HIGHER else "<="
    for metric in METRICS.values()
    if isinstance(metric.rule, Measured)
}


def measured_limits(folders: Sequence[Path]) -> dict[str, Any]:
    """The limits of every level that the first folder has images of; see `rounds_coarsely`."""
    found: dict[str, Any] = {name: {} for name in levels_in(folders[0])}
    for coarse in (False, True):
        names = [name for name in found if rounds_coarsely(name) is coarse]
        found |= _limits_of(names, folders) if names else {}
    return found


def _limits_of(names: Sequence[str], folders: Sequence[Path]) -> dict[str, Any]:
    """Of levels that differ alike between machines: the largest distance is everyone's."""
    limits: dict[str, Any] = {name: {} for name in names}
    allowed: dict[Any, float] = {}
    for metric, rule, compare in _measured(Subject.STORED):
        worst = {name: _most_apart(name, folders, rule, compare) for name in names}
        allowed[compare] = max(rule.margin * max(worst.values()), rule.least)
        for name in names:
            limits[name][rule.kind] = _row(metric, rule, worst[name], allowed[compare])
    for name in names:
        if name not in LEVELS:
            continue  # a project's own level: its folder does not say what it is compared with
        for subject, pairs in _means(LEVELS[name], folders).items():
            for metric, rule, compare in _measured(subject):
                apart = max(_mean(_apart(*pair, rule, compare)) for pair in pairs)
                # Never less than what the same comparison allows between machines.
                on_top = max(rule.margin * apart, allowed.get(compare, 0.0))
                limits[name][rule.kind] = _row(metric, rule, apart, apart + on_top)
    return limits


def _measured(subject: Subject) -> list[tuple[Metric, Measured, Compare]]:
    """The metrics of images whose limits are measured, if this installation can measure them."""
    return [
        (metric, metric.rule, metric.compare)
        for metric in metrics_of(subject)
        if isinstance(metric.rule, Measured) and metric.compare and not metric.absence
    ]


def _most_apart(level: str, folders: Sequence[Path], rule: Measured, compare: Compare) -> float:
    """The furthest of any prompt between the first folder and another."""
    first, *others = (_read(folder, level) for folder in folders)
    return max(apart for other in others for apart in _apart(other, first, rule, compare))


def _means(level: Level, folders: Sequence[Path]) -> dict[Subject, list[tuple[Images, Images]]]:
    """Each folder's images of a level, and those that they are compared with in the same run."""
    seen = [_read(folder, level.name) for folder in folders]
    found: dict[Subject, list[tuple[Images, Images]]] = {}
    ground_truth = _ground_truth_of(folders[0], level.name)
    if ground_truth:
        found[Subject.GROUND_TRUTH] = [
            ({name: each[name] for name in ground_truth}, ground_truth) for each in seen
        ]
    if level.reference and cost_is_comparable(level, get_level(level.reference)):
        references = [_read(folder, level.reference) for folder in folders]
        found[Subject.REFERENCE] = [*zip(seen, references, strict=True)]
    return found


def _row(metric: Metric, rule: Measured, apart: float, allowed: float) -> dict[str, float]:
    """The value that lies so far from the perfect one, and the limit."""
    sign = -1 if metric.better is Better.HIGHER else 1
    measured, limit = (rule.perfect + sign * distance for distance in (apart, allowed))
    return {"measured": round(measured, 7), "limit": round(limit, 7)}


def _read(folder: Path, level: str) -> Images:
    paths = sorted((folder / level).glob("*.png"))
    if not paths:
        raise BrokenFileError(
            f"{folder / level} holds no images; make them with pytest benchmarks/ "
            "--sdopt-accept --sdopt-baselines DIR"
        )
    return {path.stem: read_image(path)[0] for path in paths}


def _ground_truth_of(folder: Path, level: str) -> Images:
    """The true renderings of those images whose prompt is a scene's caption."""
    ground_truth = {}
    for path in sorted((folder / level).glob("*.png")):
        image, made_by = read_image(path)
        try:
            ground_truth[path.stem] = render(parse_caption(made_by.get("prompt", "")), len(image))
        except ValueError:
            continue  # any prompt of another source
    return ground_truth


def _apart(images: Images, others: Images, rule: Measured, compare: Compare) -> list[float]:
    """How far from the perfect value the comparison of each prompt is."""
    if unpaired := sorted(set(others) ^ set(images)):
        raise BrokenFileError(f"images {unpaired} are in one folder but not in another")
    for name, other in others.items():
        if images[name].shape != other.shape:
            raise BrokenFileError(
                f"the images {name!r} are of two sizes, {images[name].shape} and {other.shape}"
            )
    seen = [compare(images[name], other).value for name, other in others.items()]
    return [abs(rule.perfect - value) for value in seen]


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
        help="renew the limits of latents alone; the others stay as they are, and so do images",
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
    drift = LIMIT_RULES["drift"]
    content = {
        "schema": SCHEMA,
        "made_by": made_by,
        "drift": f"worst SSIM seen between machines; limit {drift.margin:g} x the largest "
        f"difference of any level, at most {1 - drift.least:g}",
        "cost_and_ground_truth": "lowest mean SSIM seen; limit "
        f"{LIMIT_RULES['cost'].margin:g} of that loss below, or what drift allows",
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
            continue  # a GPU generates none
        for name, row in measured_latent_limits(beside, kind).items():
            levels.setdefault(name, {})[kind] = row
    described = {
        "latents": "largest relative L2 of any level's final latents seen between machines; limit "
        f"{LATENT_MARGIN:g} x that; float64: the same of those generated in it",
        "latents_made_by": made_by,
    }
    return {**content, **described, "levels": levels}


if __name__ == "__main__":
    sys.exit(main())
