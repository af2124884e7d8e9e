"""Several images as one: a grid, and a comparison with difference maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdopt.cli.options import refuse_existing
from sdopt.errors import SdoptError
from sdopt.util.files import cause

if TYPE_CHECKING:
    from PIL.Image import Image

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
GAP_PX, LINE_PX = 8, 14
DIFFERENCE_TIMES = 8
"""How much brighter a difference map is than the difference."""


def grid(images: Sequence[Image]) -> Image:
    """All images in rows, as square as it gets; a single one as it is."""
    from PIL import Image as make

    if len(images) == 1:
        return images[0]
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = max(one.width for one in images), max(one.height for one in images)
    canvas = make.new("RGB", (columns * width, rows * height), WHITE)
    for index, image in enumerate(images):
        canvas.paste(image, (index % columns * width, index // columns * height))
    return canvas


def difference(image: Image, other: Image) -> Image:
    """Per pixel and channel, DIFFERENCE_TIMES as bright; black where they are the same."""
    from PIL import ImageChops

    return ImageChops.difference(image, other).point(
        lambda value: min(255, DIFFERENCE_TIMES * value)
    )


def largest_difference(image: Image, other: Image) -> tuple[int, int]:
    """How many values of two images of one size differ, and by how much at most, of 255."""
    import numpy as np

    apart = np.abs(np.asarray(image, dtype=np.int16) - np.asarray(other, dtype=np.int16))
    return int(np.count_nonzero(apart)), int(apart.max())


def side_by_side(named: Sequence[tuple[str, Image]], per_row: int) -> Image:
    """Images with a line of text below each, in rows of so many."""
    from PIL import Image as make
    from PIL import ImageDraw, ImageFont

    first = named[0][1]
    width, height = first.width + GAP_PX, first.height + GAP_PX + 3 * LINE_PX
    rows = math.ceil(len(named) / per_row)
    canvas = make.new("RGB", (per_row * width + GAP_PX, rows * height + GAP_PX), WHITE)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(LINE_PX - 3)
    for index, (name, image) in enumerate(named):
        left, top = GAP_PX + index % per_row * width, GAP_PX + index // per_row * height
        canvas.paste(image, (left, top))
        pen.multiline_text((left, top + image.height), name, fill=BLACK, font=font, spacing=2)
    return canvas


def store(out: Path, content: bytes, *, force: bool) -> None:
    """Write a file whole; not over one that has come meanwhile."""
    from sdopt.util.files import write_whole

    refuse_existing(out, force=force)
    try:
        write_whole(out, content)
    except OSError as error:
        raise SdoptError(f"{out} cannot be written: {cause(error)}; name another file") from error
