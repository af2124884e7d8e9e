"""Launch the warp-specialized kernels: descriptors, grids and workspaces on a Hopper GPU."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
from torch import Tensor
from triton import cdiv

from sdopt.engine import dependent
from sdopt.engine.tiles import Tile

LOG2_E = 1.4426950408889634
GLUON_VERSIONS = ((3, 6), (3, 9))
"""First and last minor version of Triton whose Gluon compiles the kernels; they ran with 3.6."""


def compiles_here() -> bool:
    """Whether this Triton's Gluon is one that the kernel was compiled with."""
    major, minor, *_ = triton.__version__.split(".")
    return GLUON_VERSIONS[0] <= (int(major), int(minor)) <= GLUON_VERSIONS[1]


def product(
    x: Tensor,
    x2: Tensor | None,
    weight: Tensor,
    out: Tensor,
    tile: Tile,
    *,
    shape: tuple[int, int, int, int],
    columns: int,
    taps: int,
    phases: int,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    flat: bool,
    downsample: bool = False,
    geglu: bool = False,
    scale: Tensor | None = None,
) -> None:
    """`specialized.sdopt_product` into `out`, or, of a split tile, into its sums.

    `shape` is that of the image before doubling, (images, H, W, C); of a matrix (1, rows, 1, K).
    `weight` is (phases**2 * N, taps**2 * C), for GEGLU (2 * N, K). Operands are float16 or float8,
    whose columns' sums are multiplied by `scale`.
    """
    from sdopt.engine import specialized

    images, height, width, channels = shape
    depth = tile.depth
    if flat:
        box = [tile.pixels, depth]
        down = cdiv(height, 2 * tile.pixels)
    else:
        rows = [tile.height, 1] if downsample else [tile.height]
        box = [tile.images, *rows, tile.width, depth]
        tiles = cdiv(images, tile.images) * cdiv(height, tile.height) * cdiv(width, tile.width)
        down = cdiv(tiles, 2)
    whole = tile.splits == 1
    across = cdiv(columns, tile.columns + (0 if geglu else tile.extra))
    specialized.sdopt_product[(down, across, tile.splits * phases**2)](
        boxes(x, box), boxes(x if x2 is None else x2, box),
        boxes(weight, [tile.columns, depth]), boxes(weight, [tile.extra or tile.columns, depth]),
        *(out if tensor is None else tensor for tensor in (scale, bias, residual)), out,
        images, height, width, channels, 0 if x2 is None else x2.shape[1], columns, tile.splits,
        TAPS=taps, PHASES=phases, FLAT=flat, DOWNSAMPLE=downsample,
        JOINED=x2 is not None, GEGLU=geglu,
        PARTIAL=not whole, BI=tile.images, BH=tile.height, BW=tile.width, BN=tile.columns,
        BX=tile.extra, BK=depth, STAGES=tile.stages, SCALED=whole and scale is not None,
        HAS_BIAS=whole and bias is not None,
        HAS_RESIDUAL=whole and residual is not None, ACTIVATION=activation if whole else 0,
        num_warps=4,
        **dependent.options(),
    )  # fmt: skip


def attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, heads: int, tile: Tile) -> None:
    """`specialized_attention.sdopt_attention_specialized` into `out` (B, tokens, width).

    k and v are (B, keys, width), q may have fewer images; rows may be apart. Raises ValueError
    for keys that are no multiple of the tile's, and for heads that are larger than its parts.
    """
    from sdopt.engine import specialized_attention

    images, tokens, width = out.shape
    keys, size = k.shape[1], width // heads
    consumers = tile.warps // 4
    together = tile.columns * (1 + tile.ahead)
    if keys % together:
        raise ValueError(f"{keys} keys are no multiple of {together}")
    if size > tile.depth + tile.extra:
        raise ValueError(f"heads of {size} entries are more than {tile.depth} + {tile.extra}")
    blocks = cdiv(tokens, tile.height)
    tiles = blocks * heads * images
    read = [
        boxes(tensor.flatten(0, 1).view(-1, heads, size), [rows, 1, entries])
        for tensor, rows in ((q, tile.height // consumers), (k, tile.columns), (v, tile.columns))
        for entries in (tile.depth, tile.extra or tile.depth)
    ]
    specialized_attention.sdopt_attention_specialized[(min(tiles, _multiprocessors(out.device)),)](
        *read, out, tokens, keys, len(q), blocks, tiles, LOG2_E / size**0.5, HEADS=heads,
        SIZE=size, EXTRA=tile.extra, CONSUMERS=consumers, AHEAD=tile.ahead,
        POLYNOMIAL=tile.polynomial, STAGES=tile.stages, num_warps=4,
        **dependent.options(),
    )  # fmt: skip


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    """Programs of specialized attention that run at a time: one on each."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def boxes(tensor: Tensor, box: list[int]) -> object:
    """A descriptor by which a kernel of Gluon's reads the tensor in such boxes."""
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    float8 = tensor.dtype == torch.float8_e4m3fn  # whose name in Gluon is another one
    kind = gl.float8e4nv if float8 else getattr(gl, str(tensor.dtype).removeprefix("torch."))
    layout = gl.NVMMASharedLayout.get_default_for(box, kind)
    return TensorDescriptor.from_tensor(tensor, box, layout)
