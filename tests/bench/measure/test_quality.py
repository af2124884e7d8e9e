"""Likeness of images, and the images that are worth none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sdopt.bench.measure.quality import compare, image_fault, image_faults, to_uint8
from sdopt.bench.metrics.images import ssim, worst_block
from sdopt.bench.metrics.metric import Subject

SIZE_PX = 16


def noise(seed: int = 0) -> NDArray[np.float32]:
    """An image as a pipeline makes it: float32 from 0 to 1."""
    return np.random.default_rng(seed).random((SIZE_PX, SIZE_PX, 3), np.float32)


def filled(*rgb: float) -> NDArray[np.float32]:
    """An image of one colour."""
    return np.full((SIZE_PX, SIZE_PX, 3), rgb, np.float32)


def with_pixel(value: float) -> NDArray[np.float32]:
    image = noise()
    image[3, 4, 1] = value
    return image


def test_equal_images_are_wholly_alike() -> None:
    image = to_uint8(noise())
    assert ssim(image, image.copy()).value == 1.0
    assert worst_block(image, image.copy()).value == 0.0


def test_likeness_is_the_same_from_both_sides() -> None:
    one, other = to_uint8(noise(1)), to_uint8(noise(2))
    assert ssim(one, other) == ssim(other, one)
    assert ssim(one, other).value < 0.5


def test_swapped_channels_are_less_alike() -> None:
    image = to_uint8(noise())
    assert ssim(image, image[..., ::-1]).value < 0.9


@pytest.mark.parametrize("shape", [(16, 8, 3), (8, 16, 3), (16, 16, 4)])
def test_images_of_different_shapes_are_refused_with_both(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="different shapes") as caught:
        ssim(to_uint8(noise()), np.zeros(shape, np.uint8))
    assert "(16, 16, 3)" in str(caught.value)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "pixel"), [(0.0, 0), (1.0, 255), (0.5, 128), (0.499, 127), (-0.5, 0), (1.5, 255)]
)
def test_an_image_is_rounded_and_clipped(value: float, pixel: int) -> None:
    image = to_uint8(filled(value))
    assert image.dtype == np.uint8
    assert (image == pixel).all()


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (noise(), None),
        (to_uint8(noise()), None),
        (with_pixel(np.nan), "NaN or infinite pixels"),
        (with_pixel(np.inf), "NaN or infinite pixels"),
        (filled(np.nan), "NaN or infinite pixels"),
        (filled(0.0), "a black image"),
        (filled(-0.1, -0.2, -0.3), "a black image"),
        (to_uint8(filled(0.0)), "a black image"),
        (filled(1.0), "a constant image"),
        (filled(0.5), "a constant image"),
        (filled(1.0, 0.0, 0.0), "a constant image"),
        (to_uint8(filled(0.2, 0.4, 0.6)), "a constant image"),
    ],
)
def test_a_worthless_image_is_named(image: NDArray[Any], fault: str | None) -> None:
    assert image_fault(image) == fault


def test_faults_are_listed_by_prompt() -> None:
    images = {"good": noise(), "black": filled(0.0), "nan": filled(np.nan)}
    assert image_faults(images) == {
        "black": "a black image",
        "nan": "NaN or infinite pixels",
    }


def test_a_comparison_is_by_prompt() -> None:
    images = {"same": noise(1), "other": noise(2)}
    seen = compare(images, {"same": to_uint8(noise(1)), "other": to_uint8(noise(3))})
    assert seen.faults == {}
    assert seen.values("ssim_drift")["same"] == 1.0
    assert seen.values("ssim_drift")["other"] < 0.5
    assert list(seen.values("block_drift")) == ["same", "other"]


def test_each_subject_has_metrics_of_its_own() -> None:
    images, others = {"a": noise()}, {"a": to_uint8(noise())}
    assert "ssim_cost" in compare(images, others, Subject.REFERENCE).seen
    assert "ssim_cost" not in compare(images, others, Subject.GROUND_TRUTH).seen


def test_a_worthless_image_gets_no_likeness() -> None:
    images = {"good": noise(), "nan": filled(np.nan)}
    seen = compare(images, {name: to_uint8(noise()) for name in images})
    assert seen.faults == {"nan": "NaN or infinite pixels"}
    assert list(seen.values("ssim_drift")) == ["good"]


def test_only_the_prompts_of_the_others_are_compared() -> None:
    seen = compare({"a": noise(), "b": filled(0.0)}, {"a": to_uint8(noise())})
    assert (list(seen.values("ssim_drift")), seen.faults) == (["a"], {})


def test_a_white_spot_shows_in_its_block_where_the_mean_ssim_hides_it() -> None:
    image = np.random.default_rng(0).integers(0, 160, (512, 512, 3), dtype=np.uint8)
    spotted = image.copy()
    spotted[301:305, 7:11] = 255
    assert ssim(spotted, image).value > 0.9997
    seen = worst_block(spotted, image)
    assert seen.value == pytest.approx((255 - image[301:305, 7:11].mean()) / 255)
    assert seen.where == "column 7, row 301"


def test_an_image_smaller_than_a_block_is_one() -> None:
    image = np.zeros((7, 7, 3), dtype=np.uint8)
    difference, where = worst_block(image[:2, :3], image[:2, :3] + np.uint8(51))
    assert difference == pytest.approx(0.2)
    assert where == "column 0, row 0"
