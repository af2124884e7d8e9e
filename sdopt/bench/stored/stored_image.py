"""Reads the PNG file of a stored image, and nothing that merely looks like one."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdopt.bench.stored.soundness import Unsound, check_settings
from sdopt.util.files import MOST_BYTES, cause, read_plain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TEXT_KEY = "sdopt"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = struct.Struct(">I4sIIBB")
"""Length and type of the first chunk; width, height, bits of a value, kind of color."""
COLORS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
RGB = 2
BITS = 8
MOST_PIXELS = 4096 * 4096
"""More is nothing that this suite stores, and decoding it could take all memory."""


def read_stored_image(path: Path) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """The image of shape (height, width, 3), and how it was made.

    Raises Unsound if the file is no such image; the message continues the file's name.
    """
    image, text = _read(path)
    return image, _made_by(text)


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """The image of a file that need not say how it was made. Raises OSError and Unsound."""
    return _read(path)[0]


def pixels_of(content: bytes) -> NDArray[np.uint8]:
    """The image of a PNG file's bytes. Raises Unsound."""
    _check_header(content)
    return _decoded(content)[0]


def _read(path: Path) -> tuple[NDArray[np.uint8], str | None]:
    content = read_plain(path, MOST_BYTES)
    _check_header(content)
    return _decoded(content)


def _check_header(content: bytes) -> None:
    """What Pillow would silently convert, or decode at any size."""
    if not content:
        raise Unsound("cannot be decoded: it is empty")
    if not SIGNATURE.startswith(content[: len(SIGNATURE)]):
        raise Unsound("is no PNG file, whatever its name says")
    if len(content) < len(SIGNATURE) + HEADER.size:
        raise Unsound("cannot be decoded: it ends within its header")
    _, _, width, height, bits, color = HEADER.unpack_from(content, len(SIGNATURE))
    if (bits, color) != (BITS, RGB):
        found = f"{bits}-bit {COLORS.get(color, f'color of kind {color}')}"
        raise Unsound(f"holds {found}; images are stored as {BITS}-bit RGB")
    if width * height > MOST_PIXELS:
        raise Unsound(f"is {width} x {height} pixels large; no image of this suite is")


def _decoded(content: bytes) -> tuple[NDArray[np.uint8], str | None]:
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.load()
            if (frames := getattr(image, "n_frames", 1)) != 1:
                raise Unsound(f"holds {frames} images")
            return np.asarray(image.convert("RGB")), image.info.get(TEXT_KEY)
    except Unsound:
        raise
    except Exception as error:  # Pillow raises nearly anything for a damaged file
        raise Unsound(f"cannot be decoded: {cause(error)}") from error


def _made_by(text: str | None) -> dict[str, Any]:
    if text is None:
        raise Unsound("says nothing about how it was made")
    try:
        made_by = json.loads(text)
    except ValueError as error:
        raise Unsound(f"says in no JSON how it was made: {error}") from error
    if not isinstance(made_by, dict):
        raise Unsound(f"says {text[:40]!r} about how it was made")
    try:
        check_settings(made_by)
    except Unsound as error:
        raise Unsound(f"is not sound: {error}") from error
    return made_by
