"""Images as parts of results hold them: PNG, since a score is no better than its pixels."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from sdopt.bench.stored.soundness import Unsound
from sdopt.bench.stored.stored_image import pixels_of
from sdopt.errors import BrokenFileError

Image = NDArray[np.uint8]
"""(height, width, 3), 0 to 255."""


def to_png(image: Image) -> bytes:
    """Quickly: these files are many, and read once or never."""
    from PIL import Image as Images

    content = io.BytesIO()
    Images.fromarray(image).save(content, "PNG", compress_level=1)
    return content.getvalue()


def from_png(content: bytes) -> Image:
    """(height, width, 3), 0 to 255. Raises BrokenFileError that says only what is wrong."""
    try:
        return pixels_of(content)
    except Unsound as error:
        raise BrokenFileError(f"its PNG {error}") from error
