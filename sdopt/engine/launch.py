"""Launch the Triton kernels: boxes, grids and workspaces for tensors on a CUDA device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2
from triton.tools.tensor_descriptor import TensorDescriptor

from sdopt.engine import dependent, epilogue, kernels, specialized_launch, stationary_launch
from sdopt.engine.cards import H100
from sdopt.engine.float8 import KIND, Rounded
from sdopt.engine.rules import MOST_KEYS, ruled_attention
from sdopt.engine.specialized_launch import LOG2_E
from sdopt.engine.tiles import Tile

SUM_BLOCK = 1024
EPILOGUE_BLOCK = 2048
SMALL_NORM_PIXELS, SMALL_NORM_ENTRIES = 256, 32768
"""Of a group, padded to powers of 2: so many fit into the registers of one program. What the norms'
sizes cost on a card: `python -m studies.norm_sizes`."""
STATISTICS = (2, 2048, 2)
"""Groups whose rows are read together, entries loaded at a time, and warps."""
LARGE_STATISTICS = (4, 4096, 4)
"""The same for chunks of more than SMALL_CHUNK pixels."""
SMALL_CHUNK = 256
PIECES = (2048, 64, 2)
"""Entries that one program normalizes, at most how many channels of them, and warps."""
LAYER_NORM_ENTRIES = 4096
MOST_CHUNKS = 16
"""Every program that normalizes reads as many; more are put together by a kernel of their own."""
LARGEST_CHUNK = 1024
"""Pixels of one chunk of an image so large that it has more than MOST_CHUNKS."""
COMBINED_GROUPS = 8
"""Whose chunks one program puts together."""
NARROW_PIXELS, NARROW_COLUMNS = 64, 64


def convolution(
    x: Tensor,
    weight: Tensor | Rounded,
    bias: Tensor | None,
    tile: Tile,
    *,
    phases: int = 1,
    downsample: bool = False,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`kernels.sdopt_convolution` of x (B, H, W, C) by `weight` (phases**2 * N, taps, taps, C).

    With `downsample` H and W are even, and the tile's depth divides C. Operands in float8 take a
    specialized tile. Raises ValueError for a stationary one.
    """
    if tile.stationary:
        raise ValueError(f"weights stay for GEGLU alone: {tile}")
    weight, scale, result = _unscaled(weight, x)
    images, height, width, channels = x.shape
    if downsample:
        height, width = height // 2, width // 2
        if not tile.pointers:
            x = x.view(images, height, 2, width, 2 * channels)
    columns, taps = weight.shape[0] // phases**2, weight.shape[1]
    out = x.new_empty((images, height * phases, width * phases, columns), dtype=result)
    sums = _sums(out, tile)
    end = _epilogue_arguments(bias, residual, relu)
    flat = weight.reshape(weight.shape[0], -1)
    if tile.specialized:
        specialized_launch.product(
            x, None, flat, sums, tile, shape=(images, height, width, channels), columns=columns,
            taps=taps, phases=phases, bias=bias, residual=residual, activation=end["ACTIVATION"],
            flat=False, downsample=downsample, scale=scale,
        )  # fmt: skip
        return _summed(sums, out, tile, bias, residual, end, scale)
    rows = [tile.height, 1] if downsample else [tile.height]
    box = [tile.images, *rows, tile.width, tile.depth]
    tiles = cdiv(images, tile.images) * cdiv(height, tile.height) * cdiv(width, tile.width)
    across = cdiv(columns, tile.columns + tile.extra)
    kernels.sdopt_convolution[(tiles, across, tile.splits * phases**2)](
        _read(x, box, tile),
        _read(flat, [tile.columns, tile.depth], tile),
        _read(flat, [tile.extra or tile.columns, tile.depth], tile),
        _or(bias, out), _or(residual, out), sums, images, height, width, channels, columns,
        tile.splits, TAPS=taps, PHASES=phases, DOWNSAMPLE=downsample, POINTERS=tile.pointers,
        PARTIAL=tile.splits > 1,
        BI=tile.images, BH=tile.height, BW=tile.width, BN=tile.columns, BX=tile.extra,
        BK=tile.depth, STAGES=tile.stages, num_warps=tile.warps,
        **(end if tile.splits == 1 else _epilogue_arguments(None, None, False)),
        **dependent.options(),
    )  # fmt: skip
    return _summed(sums, out, tile, bias, residual, end)


def matrix_product(
    x: Tensor,
    weight: Tensor | Rounded,
    bias: Tensor | None,
    tile: Tile,
    *,
    x2: Tensor | None = None,
    residual: Tensor | None = None,
    geglu: bool = False,
) -> Tensor:
    """`kernels.sdopt_matrix_product` of x (M, K), and maybe x2 (M, K2), by `weight` (N, K + K2).

    Operands in float8 take a specialized tile. Raises ValueError for a stationary tile of anything
    but GEGLU, alone and not in float8.
    """
    weight, scale, result = _unscaled(weight, x)
    rows, depth = x.shape
    columns = weight.shape[0] // (2 if geglu else 1)
    out = x.new_empty((rows, columns), dtype=result)
    if tile.stationary:
        alone = x2 is None and residual is None and scale is None
        if not (geglu and alone) or bias is None:
            raise ValueError(f"weights stay for GEGLU alone, with a bias, not in float8: {tile}")
        stationary_launch.geglu(x, weight, bias, out, tile)
        return out
    sums = _sums(out, tile)
    end = _epilogue_arguments(bias, residual, False)
    if tile.specialized:
        specialized_launch.product(
            x, x2, weight, sums, tile, shape=(1, rows, 1, depth), columns=columns, taps=1,
            phases=1, bias=bias, residual=residual, activation=end["ACTIVATION"], flat=True,
            geglu=geglu, scale=scale,
        )  # fmt: skip
        return _summed(sums, out, tile, bias, residual, end, scale)
    box = [tile.pixels, tile.depth]
    across = cdiv(columns, tile.columns + tile.extra)
    kernels.sdopt_matrix_product[(cdiv(rows, tile.pixels), across, tile.splits)](
        _read(x, box, tile),
        _read(x if x2 is None else x2, box, tile),
        _read(weight, [tile.columns, tile.depth], tile),
        _read(weight, [tile.extra or tile.columns, tile.depth], tile),
        _or(bias, out),
        _or(residual, out),
        sums,
        rows,
        columns,
        depth,
        0 if x2 is None else x2.shape[1],
        tile.splits,
        POINTERS=tile.pointers,
        PARTIAL=tile.splits > 1,
        BM=tile.pixels,
        BN=tile.columns,
        BX=tile.extra,
        BK=tile.depth,
        STAGES=tile.stages,
        JOINED=x2 is not None,
        GEGLU=geglu,
        num_warps=tile.warps,
        **(end if tile.splits == 1 else _epilogue_arguments(None, None, False)),
        **dependent.options(),
    )
    return _summed(sums, out, tile, bias, residual, end)


def narrow_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`kernels.sdopt_narrow_convolution` of x (B, H, W, C) by `weight` (N, 3, 3, C)."""
    images, height, width, channels = x.shape
    columns = weight.shape[0]
    out = x.new_empty((images, height, width, columns))
    down = cdiv(images * height * width, NARROW_PIXELS)
    kernels.sdopt_narrow_convolution[(down, cdiv(columns, NARROW_COLUMNS))](
        x, weight, _or(bias, out), out, images, height, width, columns, C=channels,
        DEPTH=max(16, next_power_of_2(9 * channels)), BM=NARROW_PIXELS, BN=NARROW_COLUMNS,
        HAS_BIAS=bias is not None, num_warps=4,
        **dependent.options(),
    )  # fmt: skip
    return out


def attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, tile: Tile, *, causal: bool = False
) -> Tensor:
    """`kernels.sdopt_attention` of q (B, tokens, width), k and v (B, keys, width).

    Their rows may be apart. Of q there may be fewer images, which are used again from the first.

    `tile` has `height` tokens and `columns` keys at a time, which may come in boxes. A specialized
    one is for tokens that see all others: causal attention is cut by rule instead.
    """
    tokens, width = q.shape[1:]
    images, keys = k.shape[:2]
    size = width // heads
    out = q.new_empty((images, tokens, width))
    if tile.specialized and not causal:
        specialized_launch.attention(q, k, v, out, heads, tile)
        return out
    if tile.specialized:
        tile = ruled_attention(MOST_KEYS, size, H100)
    wide = max(16, next_power_of_2(size))
    box = [1, tile.columns, wide]
    kernels.sdopt_attention[(cdiv(tokens, tile.height), images * heads)](
        q, *(TensorDescriptor.from_tensor(t, box) if tile.boxed else t for t in (k, v)), out,
        tokens, keys, len(q), q.stride(1), k.stride(1), LOG2_E / size**0.5, HEADS=heads, SIZE=size,
        WIDTH=wide, BM=tile.height, BN=tile.columns, EVEN=keys % tile.columns == 0,
        CAUSAL=causal, BOXED=tile.boxed, STAGES=tile.stages, num_warps=tile.warps,
        **dependent.options(),
    )  # fmt: skip
    return out


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    epsilon: float,
    *,
    silu: bool = False,
    x2: Tensor | None = None,
    shift: Tensor | None = None,
    factor: float | None = None,
) -> Tensor:
    """GroupNorm of x (B, H, W, C), continued along its channels by x2 if there is one.

    `shift` (C,) is added to x before. With a `factor` it is multiplied by it and rounded to float8.
    """
    images, height, width, channels = x.shape
    more = 0 if x2 is None else x2.shape[3]
    pixels, joined = height * width, channels + more
    out = x.new_empty((images, height, width, joined), dtype=_normed(x, factor))
    by = 1.0 if factor is None else factor
    second, before, shifted = _or(x2, x), _or(shift, x), shift is not None
    narrow, tall = next_power_of_2(joined // groups), next_power_of_2(pixels)
    if pixels <= SMALL_NORM_PIXELS and narrow * tall <= SMALL_NORM_ENTRIES:
        kernels.sdopt_group_norm_small[(groups, images)](
            x, second, before, weight, bias, out, pixels, channels, more, epsilon, by,
            GROUPS=groups, ROWS=tall, WIDTH=narrow, SHIFTED=shifted, SILU=silu,
            num_warps=_warps(narrow * tall),
            **dependent.options(),
        )  # fmt: skip
        return out
    rows = _chunk_rows(pixels)
    chunks = cdiv(pixels, rows)
    statistics = _float32(x, (images, chunks, groups, 2))
    together, entries, warps = STATISTICS if rows <= SMALL_CHUNK else LARGE_STATISTICS
    across = next_power_of_2(together * joined // groups)
    kernels.sdopt_group_statistics[(cdiv(groups, together), chunks, images)](
        x, second, before, statistics, pixels, rows, channels, more, GROUPS=groups,
        TOGETHER=together, ROWS=max(1, entries // across), WIDTH=across, SHIFTED=shifted,
        num_warps=warps,
        **dependent.options(),
    )  # fmt: skip
    if chunks > MOST_CHUNKS:
        combined = _float32(x, (images, 1, groups, 2))
        kernels.sdopt_combine_statistics[(cdiv(groups, COMBINED_GROUPS), images)](
            statistics, combined, pixels, chunks, rows, C=joined, GROUPS=groups,
            TOGETHER=COMBINED_GROUPS, BLOCK=256, num_warps=8,
            **dependent.options(),
        )  # fmt: skip
        statistics, chunks, rows = combined, 1, pixels
    entries, most, warps = PIECES
    across = min(next_power_of_2(joined), most)
    down = entries // across
    kernels.sdopt_group_norm_apply[(cdiv(pixels, down), images, cdiv(joined, across))](
        x, second, before, statistics, weight, bias, out, pixels, chunks, rows, channels, more,
        epsilon, by, GROUPS=groups, CHUNKS=next_power_of_2(chunks), ROWS=down, WIDTH=across,
        NEAR=next_power_of_2(across // (joined // groups) + 2), SHIFTED=shifted, SILU=silu,
        num_warps=warps,
        **dependent.options(),
    )  # fmt: skip
    return out


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, factor: float | None = None
) -> Tensor:
    """LayerNorm over the last dimension of a contiguous x; `factor` as `group_norm`'s."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    out = torch.empty_like(x, dtype=_normed(x, factor))
    by = 1.0 if factor is None else factor
    wide = next_power_of_2(channels)
    tall = max(1, LAYER_NORM_ENTRIES // wide)
    kernels.sdopt_layer_norm[(cdiv(rows, tall),)](
        x, weight, bias, out, rows, channels, epsilon, by, ROWS=tall, WIDTH=wide, num_warps=4,
        **dependent.options(),
    )  # fmt: skip
    return out


def apply_epilogue(
    values: Tensor, bias: Tensor | None, residual: Tensor | None, *, relu: bool = False
) -> Tensor:
    """`kernels.sdopt_epilogue` of a contiguous tensor whose last dimension the bias has."""
    return _ended(values, bias, residual, _epilogue_arguments(bias, residual, relu))


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 * x) of a contiguous tensor."""
    return _ended(
        x, None, None, _epilogue_arguments(None, None, False) | {"ACTIVATION": epilogue.QUICK_GELU}
    )


def solver_step(
    noise: Tensor, sample: Tensor, before: Tensor, factors: Tensor, copies: int
) -> Tensor:
    """`kernels.sdopt_solver_step` in place; the UNet's next input, `copies` times the sample."""
    images = sample.shape[0]
    unet_input = noise.new_empty((max(copies, 1) * images, *sample.shape[1:]))
    kernels.sdopt_solver_step[(cdiv(sample.numel(), SUM_BLOCK),)](
        noise, sample, before, factors, unet_input, sample.numel(),
        GUIDED=noise.shape[0] == 2 * images, NEXT_COPIES=copies, BLOCK=SUM_BLOCK, num_warps=4,
        **dependent.options(),
    )  # fmt: skip
    return unet_input


def _ended(
    values: Tensor, bias: Tensor | None, residual: Tensor | None, end: dict[str, Any]
) -> Tensor:
    out = torch.empty_like(values)
    kernels.sdopt_epilogue[(cdiv(values.numel(), EPILOGUE_BLOCK),)](
        values, _or(bias, values), _or(residual, values), out, values.numel(), values.shape[-1],
        BLOCK=EPILOGUE_BLOCK, num_warps=4, **end,
        **dependent.options(),
    )  # fmt: skip
    return out


def _unscaled(weight: Tensor | Rounded, x: Tensor) -> tuple[Tensor, Tensor | None, torch.dtype]:
    """What the matrix unit multiplies x by, by what a column's sum is scaled, the result's type."""
    if isinstance(weight, Rounded):
        return weight.values, weight.scale, weight.dtype
    return weight, None, x.dtype


def _normed(x: Tensor, factor: float | None) -> torch.dtype:
    return x.dtype if factor is None else KIND


def _sums(out: Tensor, tile: Tile) -> Tensor:
    return out if tile.splits == 1 else _float32(out, (tile.splits, *out.shape))


def _float32(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, device=like.device, dtype=torch.float32)


def _summed(
    sums: Tensor,
    out: Tensor,
    tile: Tile,
    bias: Tensor | None,
    residual: Tensor | None,
    end: dict[str, Any],
    scale: Tensor | None = None,
) -> Tensor:
    if tile.splits > 1:
        kernels.sdopt_sum_splits[(cdiv(out.numel(), SUM_BLOCK),)](
            sums, _or(scale, out), _or(bias, out), _or(residual, out), out, out.numel(),
            out.shape[-1], SPLITS=tile.splits, BLOCK=SUM_BLOCK, SCALED=scale is not None,
            num_warps=4, **end,
            **dependent.options(),
        )  # fmt: skip
    return out


def _epilogue_arguments(bias: Tensor | None, residual: Tensor | None, relu: bool) -> dict[str, Any]:
    return {
        "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": residual is not None,
        "ACTIVATION": epilogue.RELU if relu else epilogue.NO_ACTIVATION,
    }


def _read(tensor: Tensor, box: list[int], tile: Tile) -> Tensor | TensorDescriptor:
    """How a kernel reads it: through a descriptor in such boxes, or through pointers."""
    return tensor if tile.pointers else TensorDescriptor.from_tensor(tensor, box)


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A pointer that the kernel never reads stands where there is no tensor."""
    return other if tensor is None else tensor


def _chunk_rows(pixels: int) -> int:
    """Pixels of a chunk: of MOST_CHUNKS chunks, or LARGEST_CHUNK if that is less."""
    return min(LARGEST_CHUNK, int(cdiv(pixels, MOST_CHUNKS)))


def _warps(entries: int) -> int:
    """So many that a thread holds 16 entries, from 4 to 16."""
    return max(4, min(16, entries // 512))
