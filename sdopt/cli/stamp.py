"""How an image was made, inside its PNG: written by `generate`, read by `generate --like`."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdopt.cli.generating import Lora, Recipe
from sdopt.cli.options import (
    LARGEST_PX,
    MOST_GUIDANCE,
    MOST_SEED,
    MOST_STEPS,
    MULTIPLE_PX,
)
from sdopt.errors import BrokenFileError
from sdopt.levels import get_level
from sdopt.util.files import cause, is_whole, may_be_path, read_plain
from sdopt.util.precision import NAMES
from sdopt.util.text import shown

if TYPE_CHECKING:
    from PIL.Image import Image

TEXT_KEY = "sdopt"
ADDED = "dtype"
"""What images of the first versions do not say: theirs is the device's usual one."""
SCHEMA = 1
MOST_BYTES = 2**30
MOST_PIXELS = 2**28
MOST_IMAGES = 1024
HOW = "name a PNG that `sdopt generate` wrote"


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """The recipes of an image, or of a grid's images, row by row; and what it was made with."""

    recipes: tuple[Recipe, ...]
    versions: dict[str, str]


def versions_here() -> dict[str, str]:
    """Of everything that may change a bit: the packages, and the hardware."""
    from sdopt import __version__
    from sdopt.pipelines.pipeline import default_device
    from sdopt.util.hardware import hardware_of, versions

    return {"sdopt": __version__, **versions(), "hardware": str(hardware_of(default_device()))}


def png_of(image: Image, stamp: Stamp) -> bytes:
    """The content of a PNG file with the stamp inside."""
    from PIL.PngImagePlugin import PngInfo

    text = {"schema": SCHEMA, "images": [asdict(recipe) for recipe in stamp.recipes]}
    info = PngInfo()
    info.add_text(TEXT_KEY, json.dumps({**text, "versions": stamp.versions}))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def read_png(path: Path) -> tuple[Image, Stamp]:
    """An image and its stamp, whose every value was checked: anybody may have written it.

    Raises BrokenFileError that names the file and what is wrong with it.
    """
    from PIL import Image as images

    try:
        content = read_plain(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise _broken(path, f"cannot be read: {cause(error)}") from error
    try:
        with images.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            image.load()
            text, found = image.info.get(TEXT_KEY), image.convert("RGB")
    except Exception as error:  # Pillow raises nearly anything for a damaged file
        raise _broken(path, f"cannot be read as a PNG image: {cause(error)}") from error
    if not isinstance(text, str):
        raise _broken(path, "does not say how it was made")
    try:
        return found, _parsed(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"says how it was made, but not soundly: {error}") from error


def _broken(path: Path, what: str) -> BrokenFileError:
    return BrokenFileError(f"{path} {what}; {HOW}")


def _parsed(data: Any) -> Stamp:
    """Raises ValueError for what is none."""
    data = _object(data, "it")
    if data.get("schema") != SCHEMA:
        raise ValueError(f"schema is {data.get('schema')!r}, this reads {SCHEMA}")
    rows, versions = data.get("images"), _object(data.get("versions"), "versions")
    if not isinstance(rows, list) or not 1 <= len(rows) <= MOST_IMAGES:
        raise ValueError(f"images is no list of 1 to {MOST_IMAGES}")
    return Stamp(
        recipes=tuple(_recipe(_object(row, "an image")) for row in rows),
        versions={str(name): str(value) for name, value in versions.items()},
    )


def _recipe(row: Mapping[str, Any]) -> Recipe:
    names = [field.name for field in fields(Recipe)]
    row = {ADDED: None, **row}
    if set(row) != set(names):
        raise ValueError(f"an image has {', '.join(sorted(row))}; it has {', '.join(names)}")
    for name in ("level", "source", "prompt", "negative_prompt"):
        if not isinstance(row[name], str):
            raise ValueError(f"{name} is {row[name]!r}, not text")
        if not is_whole(row[name]):
            raise ValueError(f"{name} is {row[name]!r}, which holds half a character")
    _path("source", row["source"])
    get_level(row["level"])
    if not row["source"]:
        raise ValueError("source is empty")
    if row[ADDED] not in (None, *NAMES):
        raise ValueError(f"{ADDED} is {shown(repr(row[ADDED]), 40)}, not of {', '.join(NAMES)}")
    _integer(row, "seed", 0, MOST_SEED - 1)
    _integer(row, "steps", 1, MOST_STEPS)
    for name in ("width", "height"):
        _integer(row, name, MULTIPLE_PX, LARGEST_PX)
    scale = row["guidance_scale"]
    is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if not is_number or not 0 <= scale <= MOST_GUIDANCE:
        told = shown(repr(scale), 40)
        raise ValueError(f"guidance_scale is {told}, not a number from 0 to {MOST_GUIDANCE:g}")
    lora = None if row["lora"] is None else _lora(row["lora"])
    return Recipe(**{**row, "guidance_scale": float(scale), "lora": lora})


def _lora(value: Any) -> Lora:
    row = _object(value, "lora")
    if set(row) != {"file", "sha256"} or not all(isinstance(one, str) for one in row.values()):
        raise ValueError("lora is no file and sha256")
    _path("lora.file", row["file"])
    return Lora(**row)


def _path(name: str, value: str) -> None:
    if not may_be_path(value):
        raise ValueError(f"{name} is {shown(repr(value), 60)}, which can name no file")


def _integer(row: Mapping[str, Any], name: str, least: int, most: int) -> None:
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}, not an integer from {least} to {most}")


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no JSON object")
    return value


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> Sequence[str]:
    """'torch 2.12.0, here 2.13.0' for each version that is another one."""
    return [
        f"{name} {before.get(name, 'unknown')}, here {now.get(name, 'none')}"
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    ]
