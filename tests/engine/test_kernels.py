"""The Triton kernels compute what PyTorch does, run by Triton's interpreter on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import references
import torch
import torch.nn.functional as F
from references import error, random
from torch import Tensor

from sdopt.engine.cards import H100
from sdopt.engine.float8 import to_float8
from sdopt.engine.rules import ruled_attention, ruled_convolution, ruled_product
from sdopt.engine.tiles import Tile
from sdopt.engine.upsampling import upsample_weights

if os.environ.get("TRITON_INTERPRET") != "1" or find_spec("triton") is None:
    pytest.skip(
        "needs triton: run with TRITON_INTERPRET=1 where it is installed", allow_module_level=True
    )

from sdopt.engine import kernels, launch

ROUNDED = 1e-3
"""Relative error that float16 results of float32 sums may have; they have about 2e-4."""


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def half(*shape: int, seed: int = 0) -> Tensor:
    return random(*shape, seed=seed, dtype=torch.float16)


def norm_of(groups: int, channels: int, epsilon: float = 1e-5) -> torch.nn.GroupNorm:
    norm = torch.nn.GroupNorm(groups, channels, epsilon)
    norm.weight.copy_(random(channels, seed=7))
    norm.bias.copy_(random(channels, seed=8))
    return norm.half()


Cut = Callable[[Tile], Tile]


@pytest.fixture(params=[False, True], ids=["boxes", "pointers"])
def cut(request: pytest.FixtureRequest) -> Cut:
    """The same tile, read in boxes as from Hopper on, or through pointers as before it."""
    pointers: bool = request.param
    return lambda tile: replace(tile, pointers=pointers)


def test_they_are_interpreted() -> None:
    assert "interpreter" in type(kernels.sdopt_convolution).__module__


BOX = Tile(height=8, width=8, columns=32, depth=32)
CONVOLUTIONS: list[tuple[tuple[int, int, int, int], int, Tile]] = [
    ((1, 8, 8, 8), 8, BOX),
    ((2, 8, 8, 32), 32, Tile(images=2, height=8, width=8, columns=32, depth=32)),
    ((3, 4, 8, 24), 40, Tile(images=2, height=4, width=8, columns=32, depth=32)),
    ((1, 7, 10, 24), 40, BOX),
    ((1, 7, 10, 24), 40, Tile(height=8, width=8, columns=32, depth=16, splits=3)),
    ((2, 9, 13, 40), 24, Tile(height=8, width=8, columns=16, depth=32, splits=2)),
    ((3, 5, 6, 8), 96, Tile(height=16, width=4, columns=64, depth=16)),
    ((2, 8, 16, 40), 4, Tile(height=8, width=16, columns=16, depth=64)),
    ((1, 9, 12, 40), 96, Tile(height=8, width=8, columns=32, extra=16, depth=32)),
    ((1, 9, 12, 40), 96, Tile(height=8, width=8, columns=32, extra=16, depth=32, splits=2)),
    # The extra columns of the last program fall outside.
    ((1, 8, 8, 24), 72, Tile(height=8, width=8, columns=32, extra=16, depth=32)),
    ((1, 8, 8, 96), 32, Tile(height=8, width=8, columns=32, depth=64, splits=4)),
    # More splits than blocks of the sum: the last ones have nothing to add.
    ((1, 8, 8, 8), 8, Tile(height=8, width=8, columns=16, depth=64, splits=12)),
]


def with_nan(*shape: int) -> Tensor:
    x = half(*shape)
    x.view(-1)[0] = float("nan")
    return x


@pytest.mark.parametrize("relu", [True, False])
def test_what_is_no_number_is_seen_in_the_result(relu: bool, cut: Cut) -> None:
    """An overflow ends as NaN in the image, where every check looks for it."""
    x, weight, bias = with_nan(1, 8, 8, 8), half(8, 3, 3, 8, seed=1), half(8, seed=2)
    for splits in (1, 2):
        tile = cut(Tile(height=8, width=8, columns=16, depth=16, splits=splits))
        assert launch.convolution(x, weight, bias, tile, relu=relu).isnan()[0, :2, :2].all()
    assert launch.apply_epilogue(x, bias, None, relu=relu).view(-1)[0].isnan()
    assert launch.quick_gelu(x).view(-1)[0].isnan()
    rows, tile = with_nan(16, 8), cut(Tile(height=16, width=1, columns=16, depth=16))
    assert launch.matrix_product(rows, half(8, 8), bias, tile).isnan()[0].all()
    assert launch.matrix_product(rows, half(16, 8), half(16), tile, geglu=True).isnan()[0].all()
    assert launch.layer_norm(rows, bias, bias, 1e-5).isnan()[0].all()
    assert launch.group_norm(x, bias, bias, 4, 1e-5, silu=True).isnan()[..., :2].all()


@pytest.mark.parametrize(("sizes", "n", "tile"), CONVOLUTIONS)
def test_a_convolution(sizes: tuple[int, int, int, int], n: int, tile: Tile, cut: Cut) -> None:
    x, weight, bias = half(*sizes), half(n, 3, 3, sizes[3], seed=1) * 0.1, half(n, seed=2)
    found = launch.convolution(x, weight, bias, cut(tile))
    assert found.dtype == torch.float16
    assert error(found, references.convolution(x, weight, bias)) < ROUNDED


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_a_convolution_ends_with_bias_residual_and_relu(
    splits: int, biased: bool, relu: bool, cut: Cut
) -> None:
    x, weight, residual = half(2, 5, 10, 24), half(24, 3, 3, 24, seed=1) * 0.1, half(2, 5, 10, 24)
    bias = half(24, seed=2) if biased else None
    tile = Tile(height=8, width=8, columns=32, depth=32, splits=splits)
    found = launch.convolution(x, weight, bias, cut(tile), residual=residual, relu=relu)
    wanted = references.convolution(x, weight, bias, residual)
    assert error(found, F.relu(wanted) if relu else wanted) < ROUNDED


@pytest.mark.parametrize(
    ("sizes", "n"), [((1, 6, 10, 24), 40), ((3, 2, 2, 8), 8), ((2, 5, 3, 40), 4)]
)
def test_a_convolution_cut_by_rule(sizes: tuple[int, int, int, int], n: int, cut: Cut) -> None:
    x, weight, bias = half(*sizes), half(n, 3, 3, sizes[3], seed=1) * 0.1, half(n, seed=2)
    found = launch.convolution(x, weight, bias, cut(ruled_convolution(sizes, n, "conv", H100)))
    assert error(found, references.convolution(x, weight, bias)) < ROUNDED


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("sizes", "n", "tile"),
    [
        ((2, 8, 8, 32), 48, BOX),
        ((1, 5, 10, 24), 40, BOX),
        ((3, 4, 4, 8), 24, Tile(images=4, height=4, width=4, columns=32, depth=16)),
        ((1, 7, 9, 40), 96, Tile(height=8, width=8, columns=32, extra=16, depth=32)),
        ((2, 3, 6, 24), 8, ruled_convolution((2, 3, 6, 24), 8, "upsample", H100)),
    ],
)
def test_a_upsample_convolution(
    sizes: tuple[int, int, int, int], n: int, tile: Tile, biased: bool, cut: Cut
) -> None:
    x, weight = half(*sizes), random(n, sizes[3], 3, 3, seed=1) * 0.1
    bias = half(n, seed=2) if biased else None
    found = launch.convolution(x, upsample_weights(weight).half(), bias, tile, phases=2)
    assert error(found, references.upsample_convolution(x, weight, bias)) < ROUNDED


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("sizes", "n", "tile"),
    [
        ((1, 16, 16, 32), 48, BOX),
        ((2, 10, 12, 32), 40, Tile(height=8, width=8, columns=32, depth=16, splits=3)),
        ((3, 4, 4, 16), 96, Tile(images=4, height=2, width=2, columns=32, extra=16, depth=16)),
        ((1, 2, 2, 64), 8, ruled_convolution((1, 2, 2, 64), 8, "downsample", H100)),
    ],
)
def test_a_convolution_of_stride_2(
    sizes: tuple[int, int, int, int], n: int, tile: Tile, biased: bool, cut: Cut
) -> None:
    x, weight = half(*sizes), half(n, 3, 3, sizes[3], seed=1) * 0.1
    bias = half(n, seed=2) if biased else None
    found = launch.convolution(x, weight, bias, cut(tile), downsample=True)
    assert error(found, references.convolution(x, weight, bias)[:, ::2, ::2]) < ROUNDED


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("added", ["bias", "residual", "both"])
def test_what_a_library_left_out_is_added_in_one_pass(added: str, relu: bool) -> None:
    x, wanted = half(2, 5, 7, 40), half(2, 5, 7, 40).float()
    bias = half(40, seed=1) if added != "residual" else None
    residual = half(2, 5, 7, 40, seed=2) if added != "bias" else None
    for more in (bias, residual):
        wanted = wanted if more is None else wanted + more
    found = launch.apply_epilogue(x, bias, residual, relu=relu)
    assert error(found, F.relu(wanted) if relu else wanted) < ROUNDED


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("sizes", "n"), [((2, 8, 8, 4), 40), ((1, 7, 9, 4), 64), ((3, 5, 11, 3), 70), ((1, 2, 3, 1), 8)]
)
def test_a_convolution_of_few_channels(
    sizes: tuple[int, int, int, int], n: int, biased: bool
) -> None:
    x, weight = half(*sizes), half(n, 3, 3, sizes[3], seed=1)
    bias = half(n, seed=2) if biased else None
    found = launch.narrow_convolution(x, weight, bias)
    assert error(found, references.convolution(x, weight, bias)) < ROUNDED


ROWS = Tile(height=64, width=1, columns=32, depth=16)
PRODUCTS = [
    (64, 32, 32, ROWS),
    (70, 48, 40, ROWS),
    (3, 24, 8, ROWS),
    (130, 40, 96, Tile(height=128, width=1, columns=64, depth=32)),
    (70, 96, 40, Tile(height=64, width=1, columns=32, depth=16, splits=2)),
    (70, 96, 40, Tile(height=64, width=1, columns=32, depth=32, splits=5)),
    (70, 48, 96, Tile(height=64, width=1, columns=32, extra=16, depth=16)),
    (70, 96, 100, Tile(height=64, width=1, columns=64, extra=16, depth=32, splits=3)),
    (77, 40, 24, ruled_product(77, 40, 24, "linear", H100)),
    (9, 1024, 24, ruled_product(9, 1024, 24, "linear", H100)),
]


@pytest.mark.parametrize(("m", "k", "n", "tile"), PRODUCTS)
@pytest.mark.parametrize("ended", [True, False])
def test_a_product(m: int, k: int, n: int, tile: Tile, ended: bool, cut: Cut) -> None:
    x, weight = half(m, k), half(n, k, seed=1)
    bias, residual = (half(n, seed=2), half(m, n, seed=3)) if ended else (None, None)
    found = launch.matrix_product(x, weight, bias, cut(tile), residual=residual)
    assert error(found, references.product(x, weight, bias, residual=residual)) < ROUNDED


@pytest.mark.parametrize("extra", [0, 16])
@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize(("k", "k2"), [(48, 32), (40, 24), (8, 96)])
def test_a_product_of_two_inputs_side_by_side(
    k: int, k2: int, splits: int, extra: int, cut: Cut
) -> None:
    x, x2, weight = half(70, k), half(70, k2, seed=1), half(40, k + k2, seed=2)
    bias, residual = half(40, seed=3), half(70, 40, seed=4)
    tile = Tile(height=64, width=1, columns=32, extra=extra, depth=16, splits=splits)
    found = launch.matrix_product(x, weight, bias, cut(tile), x2=x2, residual=residual)
    assert error(found, references.product(x, weight, bias, x2, residual)) < ROUNDED


@pytest.mark.parametrize(("m", "k", "n"), [(64, 32, 32), (70, 48, 40), (5, 40, 96)])
def test_geglu(m: int, k: int, n: int, cut: Cut) -> None:
    x, weight, bias = half(m, k), half(2 * n, k, seed=1), half(2 * n, seed=2)
    found = launch.matrix_product(x, weight, bias, cut(ROWS), geglu=True)
    assert error(found, references.geglu(x, weight, bias)) < ROUNDED


def test_gelu_is_right_from_far_below_to_far_above_zero() -> None:
    gates = torch.linspace(-9, 9, 64).half()[:, None] * torch.eye(1, 16).half()
    weight = torch.cat([torch.zeros(16, 16), torch.eye(16)]).half()
    bias = torch.cat([torch.ones(16), torch.zeros(16)]).half()
    found = launch.matrix_product(gates, weight, bias, ROWS, geglu=True)[:, 0]
    torch.testing.assert_close(found.float(), F.gelu(gates[:, 0].float()), rtol=6e-4, atol=3e-7)


ATTENTIONS = [
    (2, 40, 77, 2, 40, Tile(height=64, width=1, columns=128, stages=2)),
    (1, 70, 70, 2, 80, Tile(height=64, width=1, columns=32, stages=2)),
    (1, 16, 16, 1, 160, Tile(height=64, width=1, columns=16)),
    (3, 65, 33, 3, 64, Tile(height=64, width=1, columns=32)),
    (1, 20, 50, 4, 8, Tile(height=32, width=1, columns=16)),
    (1, 9, 3, 2, 24, ruled_attention(3, 24, H100)),
    (2, 40, 40, 3, 40, Tile(height=32, width=1, columns=16, stages=2, boxed=True)),
    (1, 64, 64, 2, 80, Tile(height=64, width=1, columns=32, stages=2, boxed=True)),
    (2, 64, 77, 2, 48, ruled_attention(77, 48, H100)),
]


@pytest.mark.parametrize(("images", "tokens", "keys", "heads", "size", "tile"), ATTENTIONS)
def test_attention(images: int, tokens: int, keys: int, heads: int, size: int, tile: Tile) -> None:
    q = half(images, tokens, heads * size) * 3
    k, v = half(images, keys, heads * size, seed=1) * 3, half(images, keys, heads * size, seed=2)
    found = launch.attention(q, k, v, heads, tile)
    assert error(found, references.attention(q, k, v, heads)) < ROUNDED


def test_attention_uses_images_of_the_query_again() -> None:
    q, k, v = half(2, 40, 96), half(4, 24, 96, seed=1), half(4, 24, 96, seed=2)
    found = launch.attention(q, k, v, 2, Tile(height=64, width=1, columns=16))
    assert error(found, references.attention(q.repeat(2, 1, 1), k, v, 2)) < ROUNDED


@pytest.mark.parametrize("boxed", [False, True])
def test_attention_of_parts_of_one_tensor(boxed: bool) -> None:
    q, k, v = half(2, 70, 3 * 80).chunk(3, dim=-1)
    tile = Tile(height=64, width=1, columns=32, stages=2, boxed=boxed)
    found = launch.attention(q, k, v, 2, tile)
    assert error(found, references.attention(q, k, v, 2)) < ROUNDED


@pytest.mark.parametrize(("tokens", "boxed"), [(70, False), (32, False), (70, True)])
def test_causal_attention(tokens: int, boxed: bool) -> None:
    q, k, v = half(2, tokens, 3 * 48).chunk(3, dim=-1)
    tile = Tile(height=32, width=1, columns=16, stages=2, boxed=boxed)
    found = launch.attention(q, k, v, 2, tile, causal=True)
    assert error(found, references.attention(q, k, v, 2, causal=True)) < ROUNDED


@pytest.mark.parametrize("pixels", [16, 1200])
def test_norms_in_float8(pixels: int) -> None:
    x, weight, bias = half(1, pixels, 1, 64), half(64, seed=1), half(64, seed=2)
    found = launch.group_norm(x, weight, bias, 4, 1e-5, silu=True, factor=8.0)
    check_rounded(found, launch.group_norm(x, weight, bias, 4, 1e-5, silu=True))
    rows = x.reshape(pixels, 64)
    found = launch.layer_norm(rows, weight, bias, 1e-5, 8.0)
    check_rounded(found, launch.layer_norm(rows, weight, bias, 1e-5))


def check_rounded(found: Tensor, plain: Tensor) -> None:
    """That it is 8 times the plain result in float8."""
    assert found.dtype == torch.float8_e4m3fn
    wanted = to_float8(plain, 8.0).float()
    # Triton's interpreter forgets the carry of what is rounded up to a power of 2 (3.6 to 3.7.1).
    carried = wanted.abs().log2().frac() == 0
    # A value between two of float8 goes to the other one where float16 was rounded before.
    same = (found.float() == wanted)[~carried]
    assert float(same.float().mean()) > 0.98
    assert error(found.float()[~carried], wanted[~carried]) < 0.01


def test_quick_gelu() -> None:
    x = half(3, 5, 40) * 4
    assert error(launch.quick_gelu(x), x.float() * torch.sigmoid(1.702 * x.float())) < ROUNDED


def test_attention_to_one_key_far_above_the_others() -> None:
    q, k, v = half(1, 64, 40), half(1, 50, 40, seed=1), half(1, 50, 40, seed=2)
    k[:, 45] = q[:, 0] * 100
    found = launch.attention(q, k, v, 1, Tile(height=64, width=1, columns=16))
    assert error(found, references.attention(q, k, v, 1)) < ROUNDED


NORMS = [
    ((1, 8, 8, 32), 0, 4),
    ((2, 7, 10, 40), 0, 5),
    ((3, 5, 6, 24), 0, 8),
    ((2, 8, 8, 40), 20, 5),  # a group of both inputs
    ((1, 9, 12, 24), 72, 32),
]


@pytest.fixture(params=["small", "two kernels"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One program for a group, or statistics first."""
    most = 0 if request.param == "two kernels" else 1 << 20
    monkeypatch.setattr(launch, "SMALL_NORM_PIXELS", most)
    return str(request.param)


@pytest.mark.parametrize(("sizes", "more", "groups"), NORMS)
@pytest.mark.parametrize("silu", [True, False])
def test_a_group_norm(
    sizes: tuple[int, int, int, int], more: int, groups: int, silu: bool, path: str
) -> None:
    x = half(*sizes) * 2 + 1
    x2 = half(*sizes[:3], more, seed=1) if more else None
    norm = norm_of(groups, sizes[3] + more)
    found = launch.group_norm(x, norm.weight, norm.bias, groups, norm.eps, silu=silu, x2=x2)
    assert error(found, references.group_norm(x, norm, x2, silu)) < ROUNDED


@pytest.mark.parametrize("mean", [30.0, -100.0])
def test_a_group_norm_far_from_zero(mean: float, path: str) -> None:
    x = half(2, 16, 12, 40) + mean
    norm = norm_of(5, 40)
    found = launch.group_norm(x, norm.weight, norm.bias, 5, norm.eps)
    assert error(found, references.group_norm(x, norm)) < ROUNDED


def test_a_group_norm_very_far_from_zero(path: str) -> None:
    """As are channels that a bias moved: squares and their mean would cancel."""
    x = half(2, 16, 12, 40) - 500
    norm = norm_of(5, 40)
    found = launch.group_norm(x, norm.weight, norm.bias, 5, norm.eps)
    assert error(found, references.group_norm(x, norm)) < ROUNDED


def test_a_group_norm_uses_its_epsilon(path: str) -> None:
    x, norm = half(1, 8, 8, 16) * 0.1, norm_of(4, 16, epsilon=0.01)
    found = launch.group_norm(x, norm.weight, norm.bias, 4, norm.eps)
    assert error(found, references.group_norm(x, norm)) < ROUNDED


@pytest.mark.parametrize("largest", [1024, 100])
@pytest.mark.parametrize("sizes", [(2, 64, 32, 48), (1, 13, 31, 48)])
def test_statistics_of_a_large_image_are_put_together_from_chunks(
    sizes: tuple[int, int, int, int], largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "SMALL_NORM_PIXELS", 100)
    monkeypatch.setattr(launch, "MOST_CHUNKS", 3)
    monkeypatch.setattr(launch, "LARGEST_CHUNK", largest)
    x, x2, norm = half(*sizes) * 2 + 1, half(*sizes[:3], 24, seed=1), norm_of(12, 72)
    x[:, 8:] += 20  # chunks of different means
    pixels = sizes[1] * sizes[2]
    assert (launch._chunk_rows(pixels) == largest) == (pixels > 3 * largest)
    found = launch.group_norm(x, norm.weight, norm.bias, 12, norm.eps, x2=x2)
    assert error(found, references.group_norm(x, norm, x2)) < ROUNDED


@pytest.mark.parametrize("silu", [True, False])
def test_a_group_norm_of_a_shifted_input(silu: bool, path: str) -> None:
    x, norm, shift = half(2, 9, 12, 40), norm_of(5, 40), half(40, seed=3) * 10
    found = launch.group_norm(x, norm.weight, norm.bias, 5, norm.eps, silu=silu, shift=shift)
    assert error(found, references.group_norm(x.double() + shift, norm, None, silu)) < ROUNDED


@pytest.mark.parametrize("shape", [(33, 48), (1, 8), (2, 77, 40), (3, 5, 320)])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_a_layer_norm(shape: tuple[int, ...], mean: float) -> None:
    x, weight, bias = half(*shape) + mean, half(shape[-1], seed=1), half(shape[-1], seed=2)
    found = launch.layer_norm(x, weight, bias, 1e-5)
    wanted = F.layer_norm(x.double(), shape[-1:], weight.double(), bias.double(), 1e-5)
    assert error(found, wanted) < ROUNDED


@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("copies", [1, 2])
def test_a_solver_step(images: int, guided: bool, copies: int) -> None:
    noise = half((2 if guided else 1) * images, 10, 12, 4)
    sample, before = random(images, 10, 12, 4, seed=1), random(images, 10, 12, 4, seed=2)
    factors = torch.tensor([7.5, 1.1, -0.3, 0.9, 0.2, -0.1])
    wanted, estimate = references.solver_step(noise, sample, before, factors)
    found: Any = launch.solver_step(noise, sample, before, factors, copies)
    assert error(sample, wanted) < 1e-5
    assert error(before, estimate) < 1e-5
    assert torch.equal(found, torch.cat([sample.half()] * copies))
