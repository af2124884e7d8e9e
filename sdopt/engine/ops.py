"""The engine's operations: Triton kernels on a GPU, PyTorch's own elsewhere, the same arithmetic.

Images are (images, height, width, channels), contiguous; convolution weights (N, taps, taps, C).
Where a shape's measured tile says `library`, cuDNN or cuBLAS computes it on the GPU as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from sdopt.engine.cards import card_of
from sdopt.engine.float8 import Rounded, to_float8
from sdopt.engine.tables import attention_tile, convolution_tile, product_tile
from sdopt.engine.tiles import FLOAT8, Tile, attention_key, convolution_key, product_key

LEAST_CHANNELS = 8
"""A box's rows begin at multiples of 16 bytes: fewer have a kernel that needs no boxes."""
MOST_HEAD_SIZE = 160
"""Larger heads do not fit into the registers: the VAE's one of 512 is left to the library."""

_seen: dict[str, tuple[Tensor | None, ...]] | None = None


@contextmanager
def shapes_seen() -> Iterator[dict[str, tuple[Tensor | None, ...]]]:
    """The operations by their shapes' names, with one set of operands each; for tuning."""
    global _seen
    before, _seen = _seen, {}
    try:
        yield _seen
    finally:
        _seen = before


def convolution(
    x: Tensor,
    weight: Tensor | Rounded,
    bias: Tensor | None,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """A 3 x 3 convolution with a border of zeros; plus the residual; then ReLU.

    In float8 if x and the weight are.
    """
    n, _, _, c = weight.shape
    tile = None
    if c >= LEAST_CHANNELS:
        bare = bias is None and residual is None and not relu
        kind = _product_kind("plain" if bare else "conv", weight)
        _note(convolution_key(_sizes(x), n, kind), x, _values(weight), bias, residual)
        tile = _convolution_tile(x, n, kind)
    elif x.is_cuda and residual is None and not relu and isinstance(weight, Tensor):
        from sdopt.engine import launch

        return launch.narrow_convolution(x, weight, bias)
    return tiled_convolution(x, weight, bias, tile, residual=residual, relu=relu)


def tiled_convolution(
    x: Tensor,
    weight: Tensor | Rounded,
    bias: Tensor | None,
    tile: Tile | None,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`convolution` cut that way; by the library if there is no tile."""
    if tile is not None and not tile.library:
        from sdopt.engine import launch

        return launch.convolution(x, weight, bias, tile, residual=residual, relu=relu)
    x, weight = _as_multiplied(x, weight)
    out = F.conv2d(x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), None, padding=1)
    return ended(out.permute(0, 2, 3, 1).contiguous(), bias, residual, relu=relu)


def ended(
    x: Tensor, bias: Tensor | None, residual: Tensor | None = None, *, relu: bool = False
) -> Tensor:
    """x plus bias plus residual, then ReLU: on a GPU one kernel, where the library needs three."""
    if bias is None and residual is None and not relu:
        return x
    if x.is_cuda:
        from sdopt.engine import launch

        return launch.apply_epilogue(x, bias, residual, relu=relu)
    x = x if bias is None else x + bias
    x = x if residual is None else x + residual
    return F.relu(x) if relu else x


def upsample_convolution(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """A 3 x 3 convolution of the image at twice its size; see `upsampling.upsample_weights`."""
    n = weights.shape[0] // 4
    _note(convolution_key(_sizes(x), n, "upsample"), x, weights, bias)
    tile = _convolution_tile(x, n, "upsample")
    return tiled_upsample_convolution(x, weights, bias, tile)


def tiled_upsample_convolution(
    x: Tensor, weights: Tensor, bias: Tensor | None, tile: Tile | None
) -> Tensor:
    """`upsample_convolution` cut that way; by the library, as four convolutions, without a tile."""
    if tile is not None and not tile.library:
        from sdopt.engine import launch

        return launch.convolution(x, weights, bias, tile, phases=2)
    images, height, width, _ = x.shape
    padded = F.pad(x.permute(0, 3, 1, 2), (1, 1, 1, 1))
    out = x.new_empty((images, height, 2, width, 2, weights.shape[0] // 4))
    for phase, weight in enumerate(weights.chunk(4)):
        a, b = divmod(phase, 2)
        part = padded[:, :, a : a + height + 1, b : b + width + 1]
        out[:, :, a, :, b] = F.conv2d(part, weight.permute(0, 3, 1, 2), bias).permute(0, 2, 3, 1)
    return out.reshape(images, 2 * height, 2 * width, -1)


def downsample_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3 x 3 convolution of stride 2 with a border of zeros, of an image of even sides."""
    n = weight.shape[0]
    _note(convolution_key(_sizes(x), n, "downsample"), x, weight, bias)
    tile = _convolution_tile(x, n, "downsample")
    return tiled_downsample_convolution(x, weight, bias, tile)


def tiled_downsample_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, tile: Tile | None
) -> Tensor:
    """`downsample_convolution` cut that way; by the library unless boxes of a tile fill C."""
    fits = tile is not None and (tile.pointers or x.shape[3] % tile.depth == 0)
    if tile is not None and not tile.library and fits:
        from sdopt.engine import launch

        return launch.convolution(x, weight, bias, tile, downsample=True)
    first = x.permute(0, 3, 1, 2)
    out = F.conv2d(first, weight.permute(0, 3, 1, 2), None, stride=2, padding=1)
    return ended(out.permute(0, 2, 3, 1).contiguous(), bias)


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 * x), CLIP's activation."""
    if x.is_cuda:
        from sdopt.engine import launch

        return launch.quick_gelu(x)
    return x * torch.sigmoid(1.702 * x)


def linear(
    x: Tensor,
    weight: Tensor | Rounded,
    bias: Tensor | None = None,
    *,
    x2: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """x @ weight.T over the last dimension, x continued by x2 if there is one; plus the rest.

    In float8 if x and the weight are.
    """
    n, k = weight.shape
    flat = x.reshape(-1, x.shape[-1])
    more = None if x2 is None else x2.reshape(-1, x2.shape[-1])
    rest = None if residual is None else residual.reshape(-1, n)
    whole = "linear" if residual is None else "added"
    kind = _product_kind(whole if x2 is None else "joined", weight)
    _note(product_key(flat.shape[0], k, n, kind), flat, _values(weight), bias, more, rest)
    tile = _product_tile(flat, k, n, kind)
    return tiled_linear(flat, weight, bias, tile, x2=more, residual=rest).reshape(*x.shape[:-1], n)


def tiled_linear(
    x: Tensor,
    weight: Tensor | Rounded,
    bias: Tensor | None,
    tile: Tile | None,
    *,
    x2: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`linear` of matrices, cut that way; by the library if there is no tile."""
    if tile is not None and not tile.library:
        from sdopt.engine import launch

        return launch.matrix_product(x, weight, bias, tile, x2=x2, residual=residual)
    x, weight = _as_multiplied(x, weight)
    out = F.linear(x if x2 is None else torch.cat([x, x2], 1), weight, bias)
    return out if residual is None else out + residual


def geglu(x: Tensor, weight: Tensor | Rounded, bias: Tensor) -> Tensor:
    """The first half of a product's columns times GELU of the second (Shazeer 2020).

    In float8 if x and the weight are.
    """
    flat = x.reshape(-1, x.shape[-1])
    n = weight.shape[0] // 2
    kind = _product_kind("geglu", weight)
    _note(product_key(flat.shape[0], flat.shape[1], n, kind), flat, _values(weight), bias)
    tile = _product_tile(flat, flat.shape[1], n, kind)
    return tiled_geglu(flat, weight, bias, tile).reshape(*x.shape[:-1], n)


def tiled_geglu(x: Tensor, weight: Tensor | Rounded, bias: Tensor, tile: Tile | None) -> Tensor:
    """`geglu` of a matrix, cut that way; by the library if there is no tile."""
    if tile is not None and not tile.library:
        from sdopt.engine import launch

        return launch.matrix_product(x, weight, bias, tile, geglu=True)
    x, weight = _as_multiplied(x, weight)
    values, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
    return values * F.gelu(gate)


def group_norm(
    x: Tensor,
    norm: torch.nn.GroupNorm,
    *,
    silu: bool = False,
    x2: Tensor | None = None,
    shift: Tensor | None = None,
    factor: float | None = None,
) -> Tensor:
    """GroupNorm of x + shift, continued along its channels by x2 if there is one; then SiLU.

    With a `factor` the result is multiplied by it and rounded to float8.
    """
    if x.is_cuda:
        from sdopt.engine import launch

        return launch.group_norm(
            x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu=silu, x2=x2, shift=shift,
            factor=factor,
        )  # fmt: skip
    x = x if shift is None else x + shift
    joined = x if x2 is None else torch.cat([x, x2], 3)
    out = F.group_norm(
        joined.permute(0, 3, 1, 2), norm.num_groups, norm.weight, norm.bias, norm.eps
    )
    out = out.permute(0, 2, 3, 1).contiguous()
    out = F.silu(out) if silu else out
    return out if factor is None else to_float8(out, factor)


def layer_norm(x: Tensor, norm: torch.nn.LayerNorm, factor: float | None = None) -> Tensor:
    """LayerNorm over the last dimension; `factor` as `group_norm`'s."""
    if x.is_cuda:
        from sdopt.engine import launch

        return launch.layer_norm(x, norm.weight, norm.bias, norm.eps, factor)
    out = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return out if factor is None else to_float8(out, factor)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, *, causal: bool = False) -> Tensor:
    """Scaled dot-product attention of (images, tokens, heads * size) tensors.

    Of k and v there may be more images than of q, whose images are then used again from the first.
    """
    images, tokens, width = len(k), *q.shape[1:]
    size = width // heads
    tile = None
    if size <= MOST_HEAD_SIZE:
        sizes = (images, tokens, k.shape[1])
        _note(attention_key(sizes, heads, size), q, k, v)
        tile = attention_tile(sizes, heads, size, card_of(q.device)) if q.is_cuda else None
    return tiled_attention(q, k, v, heads, tile, causal=causal)


def tiled_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, tile: Tile | None, *, causal: bool = False
) -> Tensor:
    """`attention` cut that way; by the library if there is no tile."""
    if tile is not None and not tile.library:
        from sdopt.engine import launch

        return launch.attention(q, k, v, heads, tile, causal=causal)
    images, tokens, width = len(k), *q.shape[1:]
    q = q.repeat(images // len(q), 1, 1)
    q, k, v = (t.reshape(images, -1, heads, width // heads).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return out.transpose(1, 2).reshape(images, tokens, width)


def solver_step(
    noise: Tensor, sample: Tensor, before: Tensor, factors: Tensor, copies: int
) -> Tensor:
    """One step in place, for factors as `sdopt.engine.solver` makes them; the UNet's next input.

    `noise` is what the UNet predicted, of shape (images, ...) or, with guidance, (2 * images, ...)
    with the unconditional half first; `sample` and `before` are float32.
    """
    if sample.is_cuda:
        from sdopt.engine import launch

        return launch.solver_step(noise, sample, before, factors, copies)
    predicted = noise.float()
    if noise.shape[0] == 2 * sample.shape[0]:
        unconditional, conditional = predicted.chunk(2)
        predicted = unconditional + factors[0] * (conditional - unconditional)
    estimate = factors[1] * sample + factors[2] * predicted
    sample.copy_(factors[3] * sample + factors[4] * estimate + factors[5] * before)
    before.copy_(estimate)
    return torch.cat([sample.to(noise.dtype)] * max(copies, 1))


def _as_multiplied(x: Tensor, weight: Tensor | Rounded) -> tuple[Tensor, Tensor]:
    """Operands in float8 as the library can multiply them: rounded already, in a wider type."""
    if isinstance(weight, Rounded):
        return x.to(weight.dtype), weight.whole
    return x, weight


def _product_kind(kind: str, weight: Tensor | Rounded) -> str:
    return FLOAT8 + kind if isinstance(weight, Rounded) else kind


def _values(weight: Tensor | Rounded) -> Tensor:
    return weight.values if isinstance(weight, Rounded) else weight


def _convolution_tile(x: Tensor, n: int, kind: str) -> Tile | None:
    """How a GPU's work is cut; None on the CPU."""
    return convolution_tile(_sizes(x), n, kind, card_of(x.device)) if x.is_cuda else None


def _product_tile(x: Tensor, k: int, n: int, kind: str) -> Tile | None:
    return product_tile(x.shape[0], k, n, kind, card_of(x.device)) if x.is_cuda else None


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    images, height, width, channels = x.shape
    return images, height, width, channels


def _note(key: str, *operands: Tensor | None) -> None:
    if _seen is not None:
        _seen.setdefault(key, operands)
