"""The engine's operations compute what PyTorch's modules do, on channels-last images."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import references
import torch
import torch.nn.functional as F
from references import error, random
from torch import Tensor

from sdopt.engine import ops
from sdopt.engine.upsampling import upsample_weights

EXACT = 2e-6
"""Relative error that float32 may have."""


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("shape", [(1, 8, 8, 8), (2, 5, 7, 24), (3, 4, 6, 4)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_convolution(shape: tuple[int, ...], biased: bool) -> None:
    x, weight = random(*shape), random(40, 3, 3, shape[3], seed=1)
    bias = random(40) if biased else None
    found = ops.convolution(x, weight, bias)
    assert found.is_contiguous()
    assert error(found, references.convolution(x, weight, bias)) < EXACT


def test_a_convolution_adds_its_residual_before_relu() -> None:
    x, weight, residual = random(2, 6, 6, 8), random(16, 3, 3, 8, seed=1), random(2, 6, 6, 16)
    wanted = references.convolution(x, weight, None, residual)
    assert error(ops.convolution(x, weight, None, residual=residual), wanted) < EXACT
    found = ops.convolution(x, weight, None, residual=residual, relu=True)
    assert error(found, F.relu(wanted)) < EXACT


@pytest.mark.parametrize("shape", [(1, 4, 4, 8), (2, 5, 3, 24), (3, 1, 1, 4)])
def test_a_convolution_of_the_doubled_image(shape: tuple[int, ...]) -> None:
    x, weight, bias = random(*shape), random(12, shape[3], 3, 3, seed=1), random(12)
    found = ops.upsample_convolution(x, upsample_weights(weight), bias)
    assert found.is_contiguous()
    assert error(found, references.upsample_convolution(x, weight, bias)) < EXACT


def test_upsample_weights_are_four_small_kernels_with_the_same_sum() -> None:
    weight = random(6, 5, 3, 3)
    folded = upsample_weights(weight)
    assert folded.shape == (24, 2, 2, 5)
    sums = folded.sum((1, 2)).reshape(4, 6, 5)
    assert error(sums, weight.sum((2, 3)).expand(4, 6, 5)) < EXACT


def test_upsample_weights_are_rounded_once() -> None:
    weight = random(6, 5, 3, 3, dtype=torch.float16)
    assert upsample_weights(weight).dtype == torch.float16
    assert torch.equal(upsample_weights(weight), upsample_weights(weight.float()).half())


@pytest.mark.parametrize("leading", [(7,), (2, 9), (2, 3, 4)])
def test_a_product_over_the_last_dimension(leading: tuple[int, ...]) -> None:
    x, weight, bias = random(*leading, 24), random(40, 24, seed=1), random(40)
    assert error(ops.linear(x, weight), references.product(x, weight)) < EXACT
    residual = random(*leading, 40, seed=2)
    found = ops.linear(x, weight, bias, residual=residual)
    assert error(found, references.product(x, weight, bias, residual=residual)) < EXACT


def test_a_product_of_an_input_that_another_continues() -> None:
    x, x2, weight, bias = random(2, 5, 24), random(2, 5, 8), random(40, 32, seed=1), random(40)
    residual = random(2, 5, 40, seed=2)
    found = ops.linear(x, weight, bias, x2=x2, residual=residual)
    assert error(found, references.product(x, weight, bias, x2, residual)) < EXACT


def test_geglu_is_values_times_gelu_of_the_gate() -> None:
    x, weight, bias = random(2, 5, 24), random(80, 24, seed=1), random(80)
    assert error(ops.geglu(x, weight, bias), references.geglu(x, weight, bias)) < EXACT


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("continued", [True, False])
def test_group_norm(silu: bool, continued: bool) -> None:
    x, x2 = random(2, 5, 7, 24) + 3, random(2, 5, 7, 8, seed=1) if continued else None
    norm = torch.nn.GroupNorm(4, 32 if continued else 24, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    found = ops.group_norm(x, norm, silu=silu, x2=x2)
    assert found.is_contiguous()
    assert error(found, references.group_norm(x, norm, x2, silu)) < EXACT


def test_layer_norm() -> None:
    norm = torch.nn.LayerNorm(24, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = random(2, 5, 24) + 3
    assert error(ops.layer_norm(x, norm), norm(x)) < EXACT


@pytest.mark.parametrize("heads", [1, 3])
def test_attention(heads: int) -> None:
    q, k, v = random(2, 5, 24), random(2, 9, 24, seed=1), random(2, 9, 24, seed=2)
    assert error(ops.attention(q, k, v, heads), references.attention(q, k, v, heads)) < EXACT


def test_attention_uses_images_of_the_query_again() -> None:
    q, k, v = random(2, 5, 24), random(4, 9, 24, seed=1), random(4, 9, 24, seed=2)
    wanted = references.attention(q.repeat(2, 1, 1), k, v, 3)
    assert error(ops.attention(q, k, v, 3), wanted) < EXACT


def test_causal_attention_looks_back_only() -> None:
    q, k, v = (random(2, 6, 24, seed=seed) for seed in range(3))
    found = ops.attention(q, k, v, 3, causal=True)
    assert error(found, references.attention(q, k, v, 3, causal=True)) < EXACT
    assert error(found[:, 0], v[:, 0]) < EXACT


def test_a_convolution_of_stride_2() -> None:
    x, weight, bias = random(2, 6, 4, 8), random(16, 3, 3, 8, seed=1), random(16, seed=2)
    wanted = references.convolution(x, weight, bias)[:, ::2, ::2]
    assert error(ops.downsample_convolution(x, weight, bias), wanted) < EXACT


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("copies", [1, 2])
def test_a_step_of_the_solver_is_made_in_place(guided: bool, copies: int) -> None:
    factors = torch.tensor([7.5, 1.1, -0.3, 0.9, 0.2, -0.1])
    noise = random(6 if guided else 3, 4, 4, 4)
    sample, before = random(3, 4, 4, 4, seed=1), random(3, 4, 4, 4, seed=2)
    wanted, estimate = references.solver_step(noise, sample, before, factors)
    following = ops.solver_step(noise, sample, before, factors, copies)
    assert error(sample, wanted) < EXACT
    assert error(before, estimate) < EXACT
    assert torch.equal(following, torch.cat([sample] * copies))


def test_the_next_input_has_the_dtype_of_the_noise_and_the_sample_stays_float32() -> None:
    noise, sample = random(1, 4, 4, 4, dtype=torch.float16), random(1, 4, 4, 4)
    factors = torch.tensor([0.0, 1.0, -0.5, 1.0, 0.5, 0.0])
    following = ops.solver_step(noise, sample, torch.zeros_like(sample), factors, 1)
    assert (following.dtype, sample.dtype) == (torch.float16, torch.float32)
    assert torch.equal(following, sample.half())


def test_shapes_are_noted_while_they_are_watched() -> None:
    x, weight = random(2, 6, 6, 8), random(16, 3, 3, 8)
    tokens = random(2, 5, 8)
    with ops.shapes_seen() as seen:
        ops.convolution(x, weight, None)
        ops.convolution(x, weight, random(16))
        ops.upsample_convolution(x, upsample_weights(random(16, 8, 3, 3)), None)
        ops.downsample_convolution(x, weight, None)
        ops.linear(tokens, random(24, 8))
        ops.linear(tokens, random(24, 16), x2=tokens)
        ops.geglu(tokens, random(48, 8), random(48))
        ops.attention(tokens, random(2, 3, 8), random(2, 3, 8), 2)
        ops.attention(tokens, tokens, tokens, 2, causal=True)
        ops.attention(random(1, 4, 512), random(1, 4, 512), random(1, 4, 512), 1)
    ops.linear(tokens, random(40, 8))
    assert list(seen) == [
        "plain 2x6x6x8-16",
        "conv 2x6x6x8-16",
        "upsample 2x6x6x8-16",
        "downsample 2x6x6x8-16",
        "linear 10x8-24",
        "joined 10x16-24",
        "geglu 10x8-24",
        "attention 2x5x3-2x4",
        "attention 2x5x5-2x4",
    ]
    assert seen["plain 2x6x6x8-16"][2] is None
    assert seen["conv 2x6x6x8-16"][2] is not None


@pytest.mark.parametrize("x2", [None, random(1, 6, 6, 4, seed=1)])
def test_a_group_norm_of_a_shifted_input(x2: Tensor | None) -> None:
    x, shift = random(1, 6, 6, 8), random(8, seed=2)
    norm = torch.nn.GroupNorm(2, 8 if x2 is None else 12)
    with torch.no_grad():
        found = ops.group_norm(x, norm, silu=True, x2=x2, shift=shift)
        wanted = ops.group_norm(x + shift, norm, silu=True, x2=x2)
    torch.testing.assert_close(found, wanted)


def test_latents_are_too_narrow_for_a_box_and_not_noted() -> None:
    with ops.shapes_seen() as seen:
        ops.convolution(random(1, 8, 8, 4), random(16, 3, 3, 4), None)
    assert seen == {}
