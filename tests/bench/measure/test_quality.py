"""Likeness of pictures, and the pictures that are worth none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sdopt.bench.measure.quality import compare, picture_fault, picture_faults, to_uint8
from sdopt.bench.metrics.images import ssim, worst_block
from sdopt.bench.metrics.metric import Subject

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
    assert ssim(picture, picture.copy()).value == 1.0
    assert worst_block(picture, picture.copy()).value == 0.0


def test_likeness_is_the_same_from_both_sides() -> None:
    one, other = to_uint8(noise(1)), to_uint8(noise(2))
    assert ssim(one, other) == ssim(other, one)
    assert ssim(one, other).value < 0.5


def test_swapped_channels_are_less_alike() -> None:
    picture = to_uint8(noise())
    assert ssim(picture, picture[..., ::-1]).value < 0.9


@pytest.mark.parametrize("shape", [(16, 8, 3), (8, 16, 3), (16, 16, 4)])
def test_pictures_of_different_shapes_are_refused_with_both(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="different shapes") as caught:
        ssim(to_uint8(noise()), np.zeros(shape, np.uint8))
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
    assert seen.values("ssim_drift")["same"] == 1.0
    assert seen.values("ssim_drift")["other"] < 0.5
    assert list(seen.values("block_drift")) == ["same", "other"]


def test_each_subject_has_metrics_of_its_own() -> None:
    pictures, others = {"a": noise()}, {"a": to_uint8(noise())}
    assert "ssim_cost" in compare(pictures, others, Subject.REFERENCE).seen
    assert "ssim_cost" not in compare(pictures, others, Subject.TRUTH).seen


def test_a_worthless_picture_gets_no_likeness() -> None:
    pictures = {"good": noise(), "nan": filled(np.nan)}
    seen = compare(pictures, {name: to_uint8(noise()) for name in pictures})
    assert seen.faults == {"nan": "NaN or infinite pixels"}
    assert list(seen.values("ssim_drift")) == ["good"]


def test_only_the_prompts_of_the_others_are_compared() -> None:
    seen = compare({"a": noise(), "b": filled(0.0)}, {"a": to_uint8(noise())})
    assert (list(seen.values("ssim_drift")), seen.faults) == (["a"], {})


def test_a_white_spot_shows_in_its_block_where_the_mean_ssim_hides_it() -> None:
    picture = np.random.default_rng(0).integers(0, 160, (512, 512, 3), dtype=np.uint8)
    spotted = picture.copy()
    spotted[301:305, 7:11] = 255
    assert ssim(spotted, picture).value > 0.9997
    seen = worst_block(spotted, picture)
    assert seen.value == pytest.approx((255 - picture[301:305, 7:11].mean()) / 255)
    assert seen.where == "column 7, row 301"


def test_a_picture_smaller_than_a_block_is_one() -> None:
    picture = np.zeros((7, 7, 3), dtype=np.uint8)
    difference, where = worst_block(picture[:2, :3], picture[:2, :3] + np.uint8(51))
    assert difference == pytest.approx(0.2)
    assert where == "column 0, row 0"
