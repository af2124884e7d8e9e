"""Images as parts of results hold them: PNG, since a score is no better than its pixels."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""(height, width, 3), 0 to 255."""


def to_png(image: Image) -> bytes:
    """Quickly: these files are many, and read once or never."""
    from PIL import Image as Images

    content = io.BytesIO()
    Images.fromarray(image).save(content, "PNG", compress_level=1)
    return content.getvalue()


def from_png(content: bytes) -> Image:
    """(height, width, 3), 0 to 255."""
    from PIL import Image as Images

    with Images.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))
