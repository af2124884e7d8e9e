"""Other programs read the PNGs, pixel by pixel, however an image was cut into strips."""

from __future__ import annotations

import base64
import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sdopt.service import png


def pixels(height: int, width: int, seed: int = 0) -> png.Pixels:
    rng = np.random.default_rng(seed)
    flat = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(rng.random((height, width, 1)) < 0.5, flat, np.uint8(7)).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_pillow_reads_the_same_pixels(eighths: int, width: int, strips: int, seed: int) -> None:
    image = pixels(8 * eighths, width, seed)
    read = Image.open(io.BytesIO(png.png(image, strips)))
    assert read.mode == "RGB"
    assert np.array_equal(np.asarray(read), image)


def test_several_strips_are_one_sound_zlib_stream() -> None:
    """Pillow does not look at the Adler-32 of the whole."""
    image = pixels(256, 64)
    assert len(png.strips_of(256, 4)) == 4
    content = png.png(image, 4)
    begin = content.index(b"IDAT")
    length = int.from_bytes(content[begin - 4 : begin], "big")
    raw = zlib.decompress(content[begin + 4 : begin + 4 + length])
    assert len(raw) == 256 * (1 + 3 * 64)
    broken = bytearray(content[begin + 4 : begin + 4 + length])
    broken[-1] ^= 1
    with pytest.raises(zlib.error):
        zlib.decompress(bytes(broken))


def test_strips_cover_the_image_and_small_images_are_one() -> None:
    assert png.strips_of(64, 4) == [range(64)]
    assert [len(rows) for rows in png.strips_of(512, 4)] == [128] * 4
    assert sum(len(rows) for rows in png.strips_of(200, 4)) == 200


def test_base64_is_that_of_the_standard_library() -> None:
    content = png.png(pixels(64, 64))
    assert png.base64_of(content) == base64.b64encode(content)
