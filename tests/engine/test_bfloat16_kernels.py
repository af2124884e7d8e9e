"""The Triton kernels in bfloat16, run by Triton's interpreter: sums stay float32, rounded once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import references
import torch
import torch.nn.functional as F
from references import error, random
from torch import Tensor

from sdopt.engine.tiles import Tile
from sdopt.engine.upsampling import upsample_weights

if os.environ.get("TRITON_INTERPRET") != "1" or find_spec("triton") is None:
    pytest.skip(
        "needs triton: run with TRITON_INTERPRET=1 where it is installed", allow_module_level=True
    )

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from sdopt.engine import launch

ONCE = 2.5e-3
"""Relative error of results that are rounded once, to 8 bits; they have about 1.6e-3."""
TWICE = 4e-3
"""Where weights of a softmax are rounded too."""
BOX = Tile(height=8, width=8, columns=32, depth=32)
ROWS = Tile(height=64, width=1, columns=32, depth=16)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def right_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter multiplies bfloat16's bits as integers, and cuts where GPUs round."""
    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def widened(self: Any, a: Any, b: Any, *more: Any) -> Any:
        wide = (cast(self, x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, *wide, *more)

    def rounded(self: Any, source: Any, kind: Any) -> Any:
        if (source.dtype.scalar, kind.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, kind)
        bits = torch.from_numpy(source.data.copy()).bfloat16().view(torch.int16).numpy()
        return TensorHandle(bits.view(np.uint16), tl.bfloat16)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", widened)
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", rounded)


@pytest.fixture(params=[False, True], ids=["boxes", "pointers"])
def pointers(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def brain(*shape: int, seed: int = 0) -> Tensor:
    return random(*shape, seed=seed, dtype=torch.bfloat16)


def check(found: Tensor, wanted: Tensor, limit: float = ONCE) -> None:
    assert found.dtype == torch.bfloat16
    assert error(found, wanted) < limit


@pytest.mark.parametrize("tile", [BOX, replace(BOX, extra=16, splits=2)])
def test_a_convolution(tile: Tile, pointers: bool) -> None:
    x, weight, residual = (
        brain(1, 9, 12, 40),
        brain(56, 3, 3, 40, seed=1) * 0.1,
        brain(1, 9, 12, 56),
    )
    bias = brain(56, seed=2)
    found = launch.convolution(
        x, weight, bias, replace(tile, pointers=pointers), residual=residual, relu=True
    )
    check(found, F.relu(references.convolution(x, weight, bias, residual)))


def test_a_doubled_and_a_halved_image(pointers: bool) -> None:
    tile, bias = replace(BOX, pointers=pointers), brain(40, seed=2)
    x, weight = brain(1, 6, 8, 32), random(40, 32, 3, 3, seed=1) * 0.1
    folded = upsample_weights(weight.bfloat16())
    assert folded.dtype == torch.bfloat16
    found = launch.convolution(x, folded, bias, tile, phases=2)
    check(found, references.upsample_convolution(x, weight, bias), TWICE)  # weights were rounded
    weight = brain(40, 3, 3, 32, seed=1) * 0.1
    found = launch.convolution(x, weight, bias, tile, downsample=True)
    check(found, references.convolution(x, weight, bias)[:, ::2, ::2])


def test_a_convolution_of_few_channels() -> None:
    x, weight, bias = brain(1, 7, 9, 4), brain(64, 3, 3, 4, seed=1), brain(64, seed=2)
    found = launch.narrow_convolution(x, weight, bias)
    check(found, references.convolution(x, weight, bias))


@pytest.mark.parametrize("splits", [1, 3])
def test_a_product_of_two_inputs(splits: int, pointers: bool) -> None:
    x, x2, weight = brain(70, 40), brain(70, 24, seed=1), brain(56, 64, seed=2)
    bias, residual = brain(56, seed=3), brain(70, 56, seed=4)
    tile = replace(ROWS, extra=16, splits=splits, pointers=pointers)
    found = launch.matrix_product(x, weight, bias, tile, x2=x2, residual=residual)
    check(found, references.product(x, weight, bias, x2, residual))


def test_geglu(pointers: bool) -> None:
    x, weight, bias = brain(70, 48), brain(80, 48, seed=1), brain(80, seed=2)
    tile = replace(ROWS, pointers=pointers)
    found = launch.matrix_product(x, weight, bias, tile, geglu=True)
    check(found, references.geglu(x, weight, bias))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("boxed", [False, True])
def test_attention(boxed: bool, causal: bool) -> None:
    q, k, v = brain(2, 70, 3 * 80).chunk(3, dim=-1)
    tile = Tile(height=64, width=1, columns=32, stages=2, boxed=boxed)
    found = launch.attention(q, k, v, 2, tile, causal=causal)
    check(found, references.attention(q, k, v, 2, causal=causal), TWICE)


@pytest.mark.parametrize("small", [0, launch.SMALL_NORM_PIXELS])
def test_a_group_norm(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "SMALL_NORM_PIXELS", small)
    norm = torch.nn.GroupNorm(5, 40)
    norm.weight.copy_(random(40, seed=7))
    norm.bias.copy_(random(40, seed=8))
    norm = norm.bfloat16()
    x, x2, shift = brain(2, 8, 8, 24) * 2 + 1, brain(2, 8, 8, 16, seed=1), brain(24, seed=2)
    found = launch.group_norm(x, norm.weight, norm.bias, 5, norm.eps, silu=True, x2=x2)
    check(found, references.group_norm(x, norm, x2, silu=True))
    alone = torch.nn.GroupNorm(3, 24).bfloat16()
    found = launch.group_norm(x, alone.weight, alone.bias, 3, alone.eps, shift=shift)
    check(found, references.group_norm(x.double() + shift, alone))


def test_a_group_norm_far_from_zero() -> None:
    """Squares and their mean would cancel; in bfloat16 most of all."""
    x, norm = brain(2, 16, 12, 40) - 500, torch.nn.GroupNorm(5, 40).bfloat16()
    found = launch.group_norm(x, norm.weight, norm.bias, 5, norm.eps)
    check(found, references.group_norm(x, norm))


def test_a_layer_norm_and_what_ends_a_product() -> None:
    x, weight, bias = brain(2, 77, 40) + 3, brain(40, seed=1), brain(40, seed=2)
    found = launch.layer_norm(x, weight, bias, 1e-5)
    check(found, F.layer_norm(x.double(), (40,), weight.double(), bias.double(), 1e-5))
    check(launch.quick_gelu(x), x.float() * torch.sigmoid(1.702 * x.float()))
    residual = brain(2, 77, 40, seed=3)
    ended = launch.apply_epilogue(x, bias, residual, relu=True)
    check(ended, F.relu(x.float() + bias.float() + residual.float()))


@pytest.mark.parametrize("guided", [True, False])
def test_a_solver_step_keeps_its_samples_in_float32(guided: bool) -> None:
    noise = brain(2 if guided else 1, 10, 12, 4)
    sample, before = random(1, 10, 12, 4, seed=1), random(1, 10, 12, 4, seed=2)
    factors = torch.tensor([7.5, 1.1, -0.3, 0.9, 0.2, -0.1])
    wanted, estimate = references.solver_step(noise, sample, before, factors)
    found: Any = launch.solver_step(noise, sample, before, factors, 2)
    assert error(sample, wanted) < 1e-5
    assert error(before, estimate) < 1e-5
    assert torch.equal(found, torch.cat([sample.bfloat16()] * 2))


def test_what_float16_cannot_hold_is_finite() -> None:
    """float16 ends at 65504."""
    x, weight = torch.full((1, 8, 8, 32), 300.0), torch.full((32, 3, 3, 32), 1.0)
    found = launch.convolution(x.bfloat16(), weight.bfloat16(), None, BOX)
    assert found.max() == 9 * 32 * 300
    assert torch.finfo(torch.float16).max < (9 * 32 * 300.0)
