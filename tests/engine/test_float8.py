"""Products in float8: how operands are rounded, and that every product which is meant to be, is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import references
import torch
from diffusers import UNet2DConditionModel
from references import error, random

from sdopt.engine import float8, ops
from sdopt.engine.cards import A100, H100
from sdopt.engine.float8 import (
    CHOICE,
    FLOAT8_KINDS,
    KIND,
    LARGEST,
    Rounded,
    chosen_kinds,
    factor_of,
    rounded_weight,
    to_float8,
)
from sdopt.engine.modules import hoist
from sdopt.engine.rules import fits_float8
from sdopt.engine.tables import convolution_tile, product_tile
from sdopt.engine.tiles import LIBRARY
from sdopt.engine.unet import FusedUNet
from sdopt.errors import BrokenFileError
from sdopt.miniature import MODEL_DIR

STEP = 2.0**-4
"""The largest relative error of rounding to e4m3, which has three bits of fraction."""
EXACT = 1e-5


def norm(channels: int = 8, weight: float = 1.0, bias: float = 0.0) -> torch.nn.GroupNorm:
    made = torch.nn.GroupNorm(2, channels)
    torch.nn.init.constant_(made.weight, weight)
    torch.nn.init.constant_(made.bias, bias)
    return made.requires_grad_(False)


def test_a_weights_rows_have_scales_of_their_own() -> None:
    weight = random(6, 3, 3, 8) * torch.logspace(-6, 3, 6)[:, None, None, None]
    rounded = rounded_weight(weight, 1.0)
    assert rounded.values.dtype == KIND
    assert rounded.shape == weight.shape
    largest = rounded.values.float().abs().amax((1, 2, 3))
    assert torch.equal(largest, torch.full((6,), LARGEST))
    for row, wanted in zip(rounded.whole, weight, strict=True):
        assert error(row, wanted) < STEP


def test_a_row_of_zeros_stays_one() -> None:
    assert torch.equal(rounded_weight(torch.zeros(2, 16), 8.0).whole, torch.zeros(2, 16))


def test_the_inputs_factor_is_taken_out_of_the_weight() -> None:
    weight, x = random(6, 16), random(5, 16, seed=1)
    plain, by_eight = rounded_weight(weight, 1.0), rounded_weight(weight, 8.0)
    assert torch.equal(plain.values.float(), by_eight.values.float())
    assert error(8 * x @ by_eight.whole.T, x @ plain.whole.T) < EXACT


def test_what_is_too_large_saturates_and_nan_stays_nan() -> None:
    found = to_float8(torch.tensor([1e6, -1e6, 60.0, float("nan"), float("inf")]), 8.0).float()
    assert found[:3].tolist() == [LARGEST, -LARGEST, LARGEST]
    assert bool(found[3].isnan())
    assert float(found[4]) == LARGEST


@pytest.mark.parametrize(
    ("weight", "bias", "factor"),
    [(1.0, 0.0, 8.0), (2.0, 0.0, 4.0), (0.5, 1.0, 16.0), (-1.0, -500.0, 0.5), (0.0, 0.0, 1.0)],
)
def test_a_norms_output_has_room(weight: float, bias: float, factor: float) -> None:
    """32 deviations from the bias are not too large, and twice the factor would be."""
    assert factor_of(norm(weight=weight, bias=bias)) == factor
    assert factor * (32 * abs(weight) + abs(bias)) <= LARGEST


def test_a_norm_of_broken_weights_does_not_stop_the_level_from_being_built() -> None:
    """The image shows them."""
    assert factor_of(norm(weight=float("nan"))) == 1.0


@pytest.mark.parametrize("silu", [False, True])
def test_norms_round_their_output(silu: bool) -> None:
    x, group, layer = random(2, 4, 4, 8), norm(), torch.nn.LayerNorm(8)
    found = ops.group_norm(x, group, silu=silu, factor=8.0)
    assert found.dtype == KIND
    assert torch.equal(found.float(), to_float8(ops.group_norm(x, group, silu=silu), 8.0).float())
    found = ops.layer_norm(x, layer, 8.0)
    assert torch.equal(found.float(), to_float8(ops.layer_norm(x, layer), 8.0).float())


def test_products_are_those_of_the_rounded_operands() -> None:
    x, weight, bias = random(2, 6, 4, 16), random(24, 3, 3, 16, seed=1), random(24, seed=2)
    residual = random(2, 6, 4, 24, seed=3)
    rounded, small = rounded_weight(weight, 8.0), to_float8(x, 8.0)
    found = ops.convolution(small, rounded, bias, residual=residual)
    wanted = references.convolution(small.float(), rounded.whole, bias, residual)
    assert found.dtype == torch.float32
    assert error(found, wanted) < EXACT
    assert 1e-3 < error(found, references.convolution(x, weight, bias, residual)) < STEP

    flat = rounded_weight(weight[:, 0, 0], 8.0)
    found = ops.linear(small, flat, bias, residual=residual)
    assert error(found, small.float() @ flat.whole.T + bias + residual) < EXACT
    values, gate = (small.float() @ flat.whole.T + bias).chunk(2, dim=-1)
    assert error(ops.geglu(small, flat, bias), values * torch.nn.functional.gelu(gate)) < EXACT


def test_operations_in_float8_have_tiles_of_their_own() -> None:
    small = to_float8(random(2, 8, 8, 16), 1.0)
    weight = rounded_weight(random(16, 3, 3, 16), 1.0)
    with ops.shapes_seen() as seen:
        ops.convolution(small, weight, None)
        ops.convolution(small, weight, random(16))
        ops.linear(small, rounded_weight(random(16, 16), 1.0))
        ops.geglu(small, rounded_weight(random(16, 16), 1.0), random(16))
    assert list(seen) == [
        "float8-plain 2x8x8x16-16",
        "float8-conv 2x8x8x16-16",
        "float8-linear 128x16-16",
        "float8-geglu 128x16-8",
    ]


@pytest.mark.parametrize("kind", ["plain", "conv"])
@pytest.mark.parametrize("sizes", [(2, 64, 64, 320), (1, 8, 8, 1280), (4, 24, 40, 960)])
def test_convolutions_by_rule_fill_the_card(sizes: tuple[int, int, int, int], kind: str) -> None:
    tile = convolution_tile(sizes, 320, f"float8-{kind}", H100)
    assert tile.specialized
    assert tile.depth == 128
    assert convolution_tile(sizes, 320, f"float8-{kind}", A100) == LIBRARY


@pytest.mark.parametrize(("kind", "extra"), [("linear", 0), ("geglu", 64)])
def test_products_by_rule_fill_the_card(kind: str, extra: int) -> None:
    tile = product_tile(96, 640, 1280, f"float8-{kind}", H100)
    assert (tile.columns, tile.extra, tile.depth) == (64, extra, 128)
    assert tile.specialized
    assert product_tile(96, 640, 1280, f"float8-{kind}", A100) == LIBRARY


def test_boxes_need_rows_of_16_bytes() -> None:
    assert fits_float8(320, 64, H100)
    assert not fits_float8(24, 64, H100)
    assert not fits_float8(320, 64, H100.through_pointers())


@pytest.fixture(scope="module")
def unet() -> Any:
    return UNet2DConditionModel.from_pretrained(MODEL_DIR / "unet").requires_grad_(False)


def predicted(unet: Any, *kinds: str) -> tuple[FusedUNet, torch.Tensor]:
    fused = FusedUNet(unet=unet, kinds=kinds)
    text = random(2, 5, unet.config.cross_attention_dim, seed=2)
    ready = hoist(fused, 500, text)
    return fused, fused(random(2, 16, 16, 4, seed=1), ready.shift, ready.context)


@pytest.mark.parametrize("kind", FLOAT8_KINDS)
def test_each_kind_of_product_costs_little_and_something(kind: str, unet: Any) -> None:
    _, wanted = predicted(unet)
    fused, found = predicted(unet, kind)
    assert fused.float8_products == len(fused.float8.weights) > 0
    assert 1e-4 < error(found, wanted) < 0.02


def test_all_products_after_norms_are_in_float8_and_only_they(unet: Any) -> None:
    fused, _ = predicted(unet, *FLOAT8_KINDS)
    blocks = [type(module).__name__ for module in unet.modules()]
    wanted = 2 * blocks.count("ResnetBlock2D") + blocks.count("Transformer2DModel")
    wanted += 3 * blocks.count("BasicTransformerBlock")
    assert fused.float8_products == wanted
    assert all(isinstance(one, Rounded) for one in fused.float8.weights.values())
    assert unet.conv_in not in fused.float8.weights
    assert unet.conv_out not in fused.float8.weights


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"chosen": ["conv1", "conv3"]}', "'conv3'"),
        ('{"chosen": "conv1"}', "chosen is 'conv1'"),
        ('{"chosen": []}', "it lists one or more of conv1"),
        ("{}", "cannot be used"),
        ("{broken", "cannot be used"),
        ('{"chosen": [["conv1"]]}', "cannot be used"),
        (None, "cannot be used"),
    ],
)
def test_a_choice_that_is_none_is_named(
    content: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the level would be another one in silence."""
    file = tmp_path / CHOICE.name
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(float8, "CHOICE", file)
    with pytest.raises(BrokenFileError, match=re.escape(said)):
        chosen_kinds()


def test_a_norm_of_almost_nothing_has_a_factor_that_float32_holds() -> None:
    found = to_float8(torch.tensor([0.0, 1e-37]), factor_of(norm(weight=1e-42)))
    assert bool(torch.isfinite(found.float()).all())


def test_the_chosen_kinds_are_kinds() -> None:
    assert chosen_kinds() <= set(FLOAT8_KINDS)
    assert chosen_kinds()
