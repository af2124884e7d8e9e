"""Baselines on disk: images, their limits, and counts of work."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdopt.bench.metrics import LIMIT_RULES
from sdopt.bench.metrics.metric import ROUNDING
from sdopt.bench.stored.old_names import with_current_names
from sdopt.bench.stored.soundness import Unsound, check_limit, check_settings
from sdopt.bench.stored.stored_image import TEXT_KEY, read_stored_image
from sdopt.errors import BrokenFileError
from sdopt.levels import LEVELS, Level
from sdopt.pipelines.workload import Request
from sdopt.util.files import cause, damaged, read_json, write_whole
from sdopt.util.writing import writing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 1
REQUIRED_LIMIT = "drift"
"""What every level of `limits.json` has."""


def image_path(root: Path, baseline_set: str, level: str, prompt: str) -> Path:
    """Where the image of a level and prompt is kept."""
    return root / "images" / baseline_set / level / f"{prompt}.png"


def levels_in(folder: Path) -> list[str]:
    """The levels that a folder of images or latents holds, those of a project of its own last."""
    found = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
    return [*(name for name in LEVELS if name in found), *sorted(found - set(LEVELS))]


def save_image(path: Path, image: NDArray[np.uint8], made_by: Mapping[str, Any]) -> None:
    """Write an image of shape (height, width, 3) as PNG, with how it was made inside."""
    write_whole(path, image_content(image, made_by))


def image_content(image: NDArray[np.uint8], made_by: Mapping[str, Any]) -> bytes:
    """What `save_image` writes."""
    import io

    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text(TEXT_KEY, json.dumps(dict(made_by), sort_keys=True))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", pnginfo=text, optimize=True)
    return buffer.getvalue()


def load_image(
    path: Path,
    request: Request,
    level: Level,
    guidance_scale: float,
    shape: tuple[int, ...] | None = None,
) -> NDArray[np.uint8]:
    """The stored image of a request, of shape (height, width, 3).

    Raises BrokenFileError if it is missing, cannot be decoded, or is of another request, guidance
    scale, shape or definition of the level.
    """
    if not path.is_file():
        raise BrokenFileError(f"no baseline image {path}")
    image, made_by = read_image(path)
    here = request_fields(request)
    stored = {name: made_by.get(name) for name in here}
    if stored != here:
        raise BrokenFileError(f"{path} was made for another request: {stored}, not {here}")
    if changes := redefinition(made_by, level, guidance_scale):
        raise BrokenFileError(f"{path} was made with other settings: {changes}")
    if shape is not None and image.shape != shape:
        raise damaged(path, f"has the shape {image.shape}, this run's is {shape}")
    return image


def read_image(path: Path) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """A stored image of shape (height, width, 3), and how it was made.

    Raises BrokenFileError if it cannot be decoded.
    """
    try:
        return read_stored_image(path)
    except (OSError, Unsound) as error:
        what = f"cannot be read: {cause(error)}" if isinstance(error, OSError) else str(error)
        raise damaged(path, what) from error


def redefinition(
    stored: Mapping[str, Any], level: Level, guidance_scale: float | None
) -> str | None:
    """In what a stored image or measurement is of other settings, or None.

    `stored` holds the `level_fields` and the `guidance_scale` it was made with.
    """
    changes = level.changed_since(stored.get("level_fields", {}))
    before = stored.get("guidance_scale")
    if before != guidance_scale:
        changes.append(f"guidance_scale {before} -> {guidance_scale}")
    return ", ".join(changes) or None


def request_fields(request: Request) -> dict[str, Any]:
    """What identifies a request inside a stored image."""
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": request.seed,
    }


def limits_path(root: Path, source: str) -> Path:
    """Where the measured SSIM limits of a source are kept."""
    return root / "images" / source / "limits.json"


def load_limits(path: Path) -> dict[str, dict[str, float]]:
    """What passes, per level and the kind that a metric names; empty if there is no such file."""
    if not path.exists():
        return {}
    levels = read_limits(path)["levels"]
    return {
        level: {kind: float(row["limit"]) for kind, row in rows.items()}
        for level, rows in levels.items()
    }


def read_limits(path: Path) -> dict[str, Any]:
    """The whole file of limits, each value of it checked. Raises BrokenFileError naming one."""
    data = read_json(path)
    _check_schema(path, data)
    levels = data.get("levels")
    if not isinstance(levels, dict):
        raise damaged(path, "is incomplete: it holds no levels with their limits")
    others = [kind for kind in LIMIT_RULES if kind != REQUIRED_LIMIT]
    for level, stored in levels.items():
        rows = levels[level] = with_current_names(stored) if isinstance(stored, dict) else {}
        kinds = set(rows)
        if REQUIRED_LIMIT not in kinds or not kinds <= set(LIMIT_RULES):
            raise damaged(
                path,
                f"is of another kind: level {level!r} has the limits {sorted(kinds)}; a level has "
                f"{REQUIRED_LIMIT} and maybe {', '.join(others)}",
            )
        for kind, row in rows.items():
            try:
                check_limit(kind, row)
            except Unsound as error:
                raise damaged(path, f"is not sound: level {level!r}: {error}") from error
    return data


def _check_schema(path: Path, content: Mapping[str, Any]) -> None:
    """What another version wrote may mean something else. Raises BrokenFileError."""
    if (found := content.get("schema", SCHEMA)) != SCHEMA:
        raise damaged(
            path, f"is of schema {found!r}, which another sdopt wrote: this one reads {SCHEMA}"
        )


def work_path(root: Path, baseline_set: str) -> Path:
    """Where the counts of work of each level are kept, which are the same on every machine."""
    return root / "work" / f"{baseline_set}.json"


def load_work(path: Path) -> dict[str, dict[str, Any]]:
    """The stored counts of work by level; empty if the file does not exist."""
    if not path.exists():
        return {}
    content = read_json(path)
    _check_schema(path, content)
    levels = content.get("levels")
    if not isinstance(levels, dict) or not all(isinstance(row, dict) for row in levels.values()):
        raise damaged(path, "holds no counts by level")
    for level, row in levels.items():
        try:
            check_settings(row)
        except Unsound as error:
            raise damaged(path, f"is not sound: level {level!r}: {error}") from error
    return levels


def save_work(path: Path, level: str, counts: Mapping[str, Any]) -> None:
    """Store a level's counts of work beside those of the others.

    Equal ones stay as they are, to the last digit.
    """
    with writing(path.parent):
        levels = load_work(path)
        if not equal_counts(levels.get(level), counts):
            write_whole(path, work_content({**levels, level: dict(counts)}))


def equal_counts(one: object, other: object) -> bool:
    """Whether two levels' counts, or two of their values, differ by rounding at most."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        same = one.keys() == other.keys()
        return same and all(equal_counts(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=ROUNDING)
    return one == other


def work_content(levels: Mapping[str, Mapping[str, Any]]) -> bytes:
    """What a file of counts holds. Raises ValueError for a number that JSON cannot hold."""
    content = {"schema": SCHEMA, "levels": levels}
    return json.dumps(content, indent=1, allow_nan=False).encode()
