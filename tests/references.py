"""What the engine's operations have to give, by PyTorch in float32: images are channels-last."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def error(found: Tensor, wanted: Tensor) -> float:
    """The relative error, by the norm of all entries."""
    assert found.shape == wanted.shape
    difference = (found.double() - wanted.double()).norm()
    return float(difference / wanted.double().norm())


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, another set for each seed and shape."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
) -> Tensor:
    """3 x 3 with a border of zeros; `weight` is (N, 3, 3, C)."""
    bias = None if bias is None else bias.float()
    out = last(F.conv2d(first(x.float()), first(weight.float()), bias, padding=1))
    return out if residual is None else out + residual.float()


def upsample_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The image at twice its size, then 3 x 3; `weight` is (N, C, 3, 3), as modules have it."""
    doubled = F.interpolate(first(x.float()), scale_factor=2.0, mode="nearest")
    bias = None if bias is None else bias.float()
    return last(F.conv2d(doubled, weight.float(), bias, padding=1))


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    x2: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    joined = x.float() if x2 is None else torch.cat([x.float(), x2.float()], -1)
    out = joined @ weight.float().T
    for more in (bias, residual):
        out = out if more is None else out + more.float()
    return out


def geglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    values, gate = product(x, weight, bias).chunk(2, -1)
    return values * F.gelu(gate)


def group_norm(
    x: Tensor,
    norm: torch.nn.GroupNorm,
    x2: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """In float64, so that a mean far from zero costs nothing."""
    joined = x.double() if x2 is None else torch.cat([x.double(), x2.double()], 3)
    weight, bias = norm.weight.double(), norm.bias.double()
    out = last(F.group_norm(first(joined), norm.num_groups, weight, bias, norm.eps))
    return F.silu(out) if silu else out


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Written out, head by head."""
    outputs = []
    for query, key, value in zip(*(t.float().chunk(heads, -1) for t in (q, k, v)), strict=True):
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        if causal:
            later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        outputs.append(scores.softmax(-1) @ value)
    return torch.cat(outputs, -1)


def solver_step(
    noise: Tensor, sample: Tensor, before: Tensor, factors: Tensor
) -> tuple[Tensor, Tensor]:
    """The new sample and the new estimate."""
    predicted = noise.float()
    if noise.shape[0] == 2 * sample.shape[0]:
        unconditional, conditional = predicted.chunk(2)
        predicted = (1 - factors[0]) * unconditional + factors[0] * conditional
    estimate = factors[1] * sample + factors[2] * predicted
    return factors[3] * sample + factors[4] * estimate + factors[5] * before, estimate
