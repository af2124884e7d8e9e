"""Likeness of pictures, and the pictures that are worth none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sdopt.bench.measure.quality import (
    PSNR_CAP_DB,
    compare,
    likeness,
    picture_fault,
    picture_faults,
    to_uint8,
    worst_block,
)

SIZE_PX = 16


def noise(seed: int = 0) -> NDArray[np.float32]:
    """A picture as a pipeline makes it: float32 from 0 to 1."""
    return np.random.default_rng(seed).random((SIZE_PX, SIZE_PX, 3), np.float32)


def filled(*rgb: float) -> NDArray[np.float32]:
    """A picture of one colour."""
    return np.full((SIZE_PX, SIZE_PX, 3), rgb, np.float32)


def with_pixel(value: float) -> NDArray[np.float32]:
    picture = noise()
    picture[3, 4, 1] = value
    return picture


def test_equal_pictures_are_wholly_alike() -> None:
    picture = to_uint8(noise())
    seen = likeness(picture, picture.copy())
    assert (seen.ssim, seen.psnr_db) == (1.0, PSNR_CAP_DB)


def test_likeness_is_the_same_from_both_sides() -> None:
    one, other = to_uint8(noise(1)), to_uint8(noise(2))
    seen = likeness(one, other)
    assert seen == likeness(other, one)
    assert seen.ssim < 0.5


def test_psnr_is_that_of_the_full_range() -> None:
    """10 log10(255^2 / 1): every pixel is off by one."""
    picture = np.full((SIZE_PX, SIZE_PX, 3), 100, np.uint8)
    assert likeness(picture, picture + np.uint8(1)).psnr_db == pytest.approx(48.1308, abs=1e-4)


def test_psnr_is_capped() -> None:
    """One step in one of 196,608 values is 101.1 dB."""
    picture = np.zeros((256, 256, 3), np.uint8)
    other = picture.copy()
    other[0, 0, 0] = 1
    assert likeness(picture, other).psnr_db == PSNR_CAP_DB


def test_swapped_channels_are_less_alike() -> None:
    picture = to_uint8(noise())
    assert likeness(picture, picture[..., ::-1]).ssim < 0.9


@pytest.mark.parametrize("shape", [(16, 8, 3), (8, 16, 3), (16, 16, 4)])
def test_pictures_of_different_shapes_are_refused_with_both(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="different shapes") as caught:
        likeness(to_uint8(noise()), np.zeros(shape, np.uint8))
    assert "(16, 16, 3)" in str(caught.value)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "pixel"), [(0.0, 0), (1.0, 255), (0.5, 128), (0.499, 127), (-0.5, 0), (1.5, 255)]
)
def test_a_picture_is_rounded_and_clipped(value: float, pixel: int) -> None:
    picture = to_uint8(filled(value))
    assert picture.dtype == np.uint8
    assert (picture == pixel).all()


@pytest.mark.parametrize(
    ("picture", "fault"),
    [
        (noise(), None),
        (to_uint8(noise()), None),
        (with_pixel(np.nan), "NaN or infinite pixels"),
        (with_pixel(np.inf), "NaN or infinite pixels"),
        (filled(np.nan), "NaN or infinite pixels"),
        (filled(0.0), "a black picture"),
        (filled(-0.1, -0.2, -0.3), "a black picture"),
        (to_uint8(filled(0.0)), "a black picture"),
        (filled(1.0), "a constant picture"),
        (filled(0.5), "a constant picture"),
        (filled(1.0, 0.0, 0.0), "a constant picture"),
        (to_uint8(filled(0.2, 0.4, 0.6)), "a constant picture"),
    ],
)
def test_a_worthless_picture_is_named(picture: NDArray[Any], fault: str | None) -> None:
    assert picture_fault(picture) == fault


def test_faults_are_listed_by_prompt() -> None:
    pictures = {"good": noise(), "black": filled(0.0), "nan": filled(np.nan)}
    assert picture_faults(pictures) == {
        "black": "a black picture",
        "nan": "NaN or infinite pixels",
    }


def test_a_comparison_is_by_prompt() -> None:
    pictures = {"same": noise(1), "other": noise(2)}
    seen = compare(pictures, {"same": to_uint8(noise(1)), "other": to_uint8(noise(3))})
    assert seen.faults == {}
    assert seen.ssim["same"] == 1.0
    assert seen.ssim["other"] < 0.5
    assert seen.psnr_db["same"] == PSNR_CAP_DB > seen.psnr_db["other"]


def test_a_worthless_picture_gets_no_likeness() -> None:
    pictures = {"good": noise(), "nan": filled(np.nan)}
    seen = compare(pictures, {name: to_uint8(noise()) for name in pictures})
    assert seen.faults == {"nan": "NaN or infinite pixels"}
    assert list(seen.ssim) == ["good"]


def test_only_the_prompts_of_the_others_are_compared() -> None:
    seen = compare({"a": noise(), "b": filled(0.0)}, {"a": to_uint8(noise())})
    assert (list(seen.likeness), seen.faults) == (["a"], {})


def test_a_white_spot_shows_in_its_block_where_the_mean_ssim_hides_it() -> None:
    picture = np.random.default_rng(0).integers(0, 160, (512, 512, 3), dtype=np.uint8)
    spotted = picture.copy()
    spotted[301:305, 7:11] = 255
    seen = likeness(spotted, picture)
    assert seen.ssim > 0.9997
    assert seen.worst_block == pytest.approx((255 - picture[301:305, 7:11].mean()) / 255)
    assert seen.worst_block_at == (7, 301)
    assert likeness(picture, picture).worst_block == 0.0


def test_a_picture_smaller_than_a_block_is_one() -> None:
    picture = np.zeros((7, 7, 3), dtype=np.uint8)
    difference, place = worst_block(picture[:2, :3], picture[:2, :3] + np.uint8(51))
    assert difference == pytest.approx(0.2)
    assert place == (0, 0)
