"""Launch the Triton kernels: boxes, grids and workspaces for tensors on a CUDA device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sdopt.engine import kernels
from sdopt.engine.tiles import Tile

SUM_BLOCK = 1024
SMALL_NORM_ENTRIES = 32768
"""Of a group, padded to powers of 2: so many fit into the registers of one program."""
GROUPS_TOGETHER = 8
"""Their rows are read together when statistics are made."""
STATISTICS_PROGRAMS = 128
"""About as many as the device has multiprocessors."""
MOST_CHUNKS = 64
STATISTICS_ENTRIES = 8192
NORM_ENTRIES = 8192


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tile: Tile,
    *,
    phases: int = 1,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`kernels.convolution` of x (B, H, W, C) by `weight` (phases**2 * N, taps, taps, C)."""
    images, height, width, channels = x.shape
    columns, taps = weight.shape[0] // phases**2, weight.shape[1]
    out = x.new_empty((images, height * phases, width * phases, columns))
    sums = _sums(out, tile)
    box = [tile.images, tile.height, tile.width, tile.depth]
    tiles = _cut(images, tile.images) * _cut(height, tile.height) * _cut(width, tile.width)
    end = _ending(bias, residual, relu)
    across = _cut(columns, tile.columns + tile.extra)
    flat = weight.reshape(weight.shape[0], -1)
    kernels.convolution[(tiles, across, tile.splits * phases**2)](
        TensorDescriptor.from_tensor(x, box),
        TensorDescriptor.from_tensor(flat, [tile.columns, tile.depth]),
        TensorDescriptor.from_tensor(flat, [tile.extra or tile.columns, tile.depth]),
        _or(bias, out),
        _or(residual, out),
        sums,
        images,
        height,
        width,
        channels,
        columns,
        tile.splits,
        TAPS=taps,
        PHASES=phases,
        PARTIAL=tile.splits > 1,
        BI=tile.images,
        BH=tile.height,
        BW=tile.width,
        BN=tile.columns,
        BX=tile.extra,
        BK=tile.depth,
        STAGES=tile.stages,
        num_warps=tile.warps,
        **(end if tile.splits == 1 else _ending(None, None, False)),
    )
    return _summed(sums, out, tile, bias, residual, end)


def matrix_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tile: Tile,
    *,
    x2: Tensor | None = None,
    residual: Tensor | None = None,
    geglu: bool = False,
) -> Tensor:
    """`kernels.matrix_product` of x (M, K), and maybe x2 (M, K2), by `weight` (N, K + K2)."""
    rows, depth = x.shape
    columns = weight.shape[0] // (2 if geglu else 1)
    out = x.new_empty((rows, columns))
    sums = _sums(out, tile)
    box = [tile.pixels, tile.depth]
    end = _ending(bias, residual, False)
    kernels.matrix_product[(_cut(rows, tile.pixels), _cut(columns, tile.columns), tile.splits)](
        TensorDescriptor.from_tensor(x, box),
        TensorDescriptor.from_tensor(x if x2 is None else x2, box),
        TensorDescriptor.from_tensor(weight, [tile.columns, tile.depth]),
        _or(bias, out),
        _or(residual, out),
        sums,
        rows,
        columns,
        depth,
        0 if x2 is None else x2.shape[1],
        tile.splits,
        PARTIAL=tile.splits > 1,
        BM=tile.pixels,
        BN=tile.columns,
        BK=tile.depth,
        STAGES=tile.stages,
        JOINED=x2 is not None,
        GEGLU=geglu,
        num_warps=tile.warps,
        **(end if tile.splits == 1 else _ending(None, None, False)),
    )
    return _summed(sums, out, tile, bias, residual, end)


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    epsilon: float,
    *,
    silu: bool = False,
    x2: Tensor | None = None,
) -> Tensor:
    """GroupNorm of x (B, H, W, C), continued along its channels by x2 if there is one."""
    images, height, width, channels = x.shape
    more = 0 if x2 is None else x2.shape[3]
    pixels, joined = height * width, channels + more
    out = x.new_empty((images, height, width, joined))
    second = _or(x2, x)
    narrow, tall = _power(joined // groups), _power(pixels)
    if narrow * tall <= SMALL_NORM_ENTRIES:
        kernels.group_norm_small[(groups, images)](
            x, second, weight, bias, out, pixels, channels, more, epsilon, GROUPS=groups,
            ROWS=tall, WIDTH=narrow, SILU=silu, num_warps=_warps(narrow * tall),
        )  # fmt: skip
        return out
    chunks = _chunks(images, pixels)
    statistics = torch.empty((images, chunks, groups, 2), device=x.device, dtype=torch.float32)
    sums = torch.empty((images, chunks, 2, joined), device=x.device, dtype=torch.float32)
    across = _power(GROUPS_TOGETHER * joined // groups)
    kernels.group_statistics[(_cut(groups, GROUPS_TOGETHER), chunks, images)](
        x, second, sums, statistics, pixels, channels, more, GROUPS=groups,
        TOGETHER=GROUPS_TOGETHER, CHUNKS=chunks, ROWS=max(1, STATISTICS_ENTRIES // across),
        WIDTH=across, GROUP_WIDTH=narrow, num_warps=8,
    )  # fmt: skip
    across = min(_power(joined), 128)
    down = NORM_ENTRIES // across
    kernels.group_norm_apply[(_cut(pixels, down), images, _cut(joined, across))](
        x, second, statistics, weight, bias, out, pixels, channels, more, epsilon, GROUPS=groups,
        CHUNKS=chunks, ROWS=down, WIDTH=across, SILU=silu, num_warps=8,
    )  # fmt: skip
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """LayerNorm over the last dimension of a contiguous x."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    out = torch.empty_like(x)
    wide = _power(channels)
    tall = max(1, 2048 // wide)
    kernels.layer_norm[(_cut(rows, tall),)](
        x, weight, bias, out, rows, channels, epsilon, ROWS=tall, WIDTH=wide, num_warps=4
    )
    return out


def solver_step(
    noise: Tensor, sample: Tensor, before: Tensor, factors: Tensor, copies: int
) -> Tensor:
    """`kernels.solver_step` in place; the next input of the UNet, `copies` times the sample."""
    images = sample.shape[0]
    unet_input = noise.new_empty((max(copies, 1) * images, *sample.shape[1:]))
    kernels.solver_step[(_cut(sample.numel(), SUM_BLOCK),)](
        noise, sample, before, factors, unet_input, sample.numel(),
        GUIDED=noise.shape[0] == 2 * images, NEXT_COPIES=copies, BLOCK=SUM_BLOCK, num_warps=4,
    )  # fmt: skip
    return unet_input


def _sums(out: Tensor, tile: Tile) -> Tensor:
    if tile.splits == 1:
        return out
    return torch.empty((tile.splits, *out.shape), device=out.device, dtype=torch.float32)


def _summed(
    sums: Tensor,
    out: Tensor,
    tile: Tile,
    bias: Tensor | None,
    residual: Tensor | None,
    end: dict[str, Any],
) -> Tensor:
    if tile.splits > 1:
        kernels.sum_splits[(_cut(out.numel(), SUM_BLOCK),)](
            sums, _or(bias, out), _or(residual, out), out, out.numel(), out.shape[-1],
            SPLITS=tile.splits, BLOCK=SUM_BLOCK, num_warps=4, **end,
        )  # fmt: skip
    return out


def _ending(bias: Tensor | None, residual: Tensor | None, relu: bool) -> dict[str, Any]:
    return {
        "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": residual is not None,
        "ACTIVATION": kernels.RELU if relu else kernels.NO_ACTIVATION,
    }


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A pointer that the kernel never reads stands where there is no tensor."""
    return other if tensor is None else tensor


def _chunks(images: int, pixels: int) -> int:
    """A power of 2 that divides the pixels evenly, so that chunks weigh the same.

    16 of them for a small picture: every program that normalizes reads them all.
    """
    most = min(MOST_CHUNKS, max(16, pixels // 4096))
    chunks = 1
    while (
        chunks < most and 4 * images * chunks < STATISTICS_PROGRAMS and pixels % (2 * chunks) == 0
    ):
        chunks *= 2
    return chunks


def _warps(entries: int) -> int:
    """So many that a thread holds 32 entries, from 4 to 16."""
    return max(4, min(16, entries // 1024))


def _cut(size: int, by: int) -> int:
    return -(-size // by)


def _power(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
