"""PNG and base64 of an image in a millisecond: what Pillow needs 25 for at 512 x 512.

The format is https://www.w3.org/TR/png-3/; isal deflates, without Python's lock.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pybase64
from isal import isal_zlib
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
UP = 2
"""The filter of every row: each byte less the one above it."""
LEVEL = 1
RGB, BITS = 2, 8


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of pixels (height, width, 3)."""
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, BITS, RGB, 0, 0, 0)
    data = isal_zlib.compress(_filtered(pixels), LEVEL)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", data), _chunk(b"IEND", b""))
    return b"".join((SIGNATURE, *chunks))


def base64_of(content: bytes) -> bytes:
    """As JSON carries it."""
    encoded: bytes = pybase64.b64encode(content)
    return encoded


def _filtered(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The rows (height, 1 + 3 * width), each behind the number of its filter."""
    height, width, _ = pixels.shape
    rows = pixels.reshape(height, 3 * width)
    filtered = np.empty((height, 1 + 3 * width), dtype=np.uint8)
    filtered[:, 0] = UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return filtered


def _chunk(kind: bytes, data: bytes) -> bytes:
    check: Any = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", check)))
