"""Tiles by rule and measured ones are such that the kernels can be launched with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdopt.engine.tiles import (
    Tile,
    convolution_tile,
    product_tile,
    ruled_convolution,
    ruled_product,
    tuned,
)

side, channels = st.integers(1, 300), st.integers(8, 2560)


def is_power(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def check(tile: Tile) -> None:
    sides = (tile.images, tile.height, tile.width, tile.columns, tile.depth)
    assert all(is_power(one) and one <= 256 for one in sides), tile
    assert tile.extra == 0 or is_power(tile.extra)
    assert tile.pixels >= 64
    assert tile.splits >= 1
    assert is_power(tile.warps)


@given(st.integers(1, 16), side, side, channels, channels, st.sampled_from(["conv", "doubled"]))
def test_a_ruled_convolution(i: int, h: int, w: int, c: int, n: int, kind: str) -> None:
    tile = ruled_convolution((i, h, w, c), n, kind)
    check(tile)
    assert kind == "conv" or tile.splits == 1


@given(st.integers(1, 20000), channels, channels, st.sampled_from(["linear", "joined", "geglu"]))
def test_a_ruled_product(m: int, k: int, n: int, kind: str) -> None:
    tile = ruled_product(m, k, n, kind)
    check(tile)
    assert kind != "geglu" or tile.splits == 1


@pytest.mark.parametrize("key", tuned())
def test_a_measured_tile(key: str) -> None:
    tile = tuned()[key]
    if not tile.library:
        check(tile)
    assert key.split()[0] in ("conv", "doubled", "linear", "joined", "geglu")
    assert tile.splits == 1 or key.split()[0] not in ("doubled", "geglu")


def test_more_images_use_the_tile_of_fewer_and_split_it_less() -> None:
    measured = tuned()["conv 2x16x16x1280-1280"]
    assert measured.splits > 1
    assert convolution_tile((2, 16, 16, 1280), 1280, "conv") == measured
    for times in (2, 4, 16):
        found = convolution_tile((2 * times, 16, 16, 1280), 1280, "conv")
        assert found == replace(measured, splits=max(1, measured.splits // times))
    assert convolution_tile((6, 16, 16, 1280), 1280, "conv") == ruled_convolution(
        (6, 16, 16, 1280), 1280, "conv"
    )


def test_more_rows_use_the_tile_of_fewer() -> None:
    measured = tuned()["linear 512x5120-1280"]
    assert measured.library
    assert product_tile(4096, 5120, 1280, "linear") == measured
    assert product_tile(16384, 5120, 1280, "linear") == ruled_product(16384, 5120, 1280, "linear")
