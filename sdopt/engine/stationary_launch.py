"""Launch the kernel whose weights stay: descriptors and programs for each multiprocessor."""

from __future__ import annotations

from torch import Tensor
from triton import cdiv

from sdopt.engine import cards, dependent
from sdopt.engine.specialized_launch import boxes
from sdopt.engine.tiles import Tile

REGISTERS = {1: (232, 40, None), 2: (104, 32, 80)}
"""A thread's of a consumer and of a loader, and those that 12 warps begin with, by how many
programs a multiprocessor has at a time; None leaves all that there are."""


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    tile: Tile,
    *,
    geglu: bool = False,
) -> None:
    """`stationary.sdopt_stationary_product` of x (rows, K) by `weight` (N, K) into `out` (rows, N).

    Of GEGLU, which has a bias and no residual, `weight` is (2 * N, K). As many programs as the card
    runs at a time, the same number for each block of columns. Raises ValueError for what the tile's
    weights do not cover whole.
    """
    from sdopt.engine import stationary

    (rows, k), columns = x.shape, out.shape[1]
    card = cards.card_of(x.device) if x.is_cuda else cards.H100  # compiled only
    if not tile.keeps(k, columns, card.shared_bytes, gated=geglu):
        raise ValueError(f"weights of {k} entries by {columns} columns do not stay in {tile}")
    if geglu and (bias is None or residual is not None):
        raise ValueError("GEGLU has a bias and no residual")
    extra = 0 if geglu else tile.extra
    across = columns // (tile.columns + extra)
    down = min(max(1, card.multiprocessors * tile.programs // across), cdiv(rows, tile.pixels))
    box = [tile.columns, tile.depth]
    kept = boxes(weight.view(2, columns, k), [2, *box]) if geglu else boxes(weight, box)
    consumer, loader, begun = REGISTERS[tile.programs]
    stationary.sdopt_stationary_product[(across, down)](
        boxes(x, [tile.pixels, tile.depth]), kept,
        boxes(weight, [extra, tile.depth]) if extra else kept,
        *(out if tensor is None else tensor for tensor in (bias, residual)), out, rows, columns,
        BN=tile.columns, BX=extra, BK=tile.depth, STEPS=k // tile.depth, STAGES=tile.stages,
        GEGLU=geglu, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None,
        CONSUMER_REGISTERS=consumer, LOADER_REGISTERS=loader, num_warps=4, maxnreg=begun,
        **dependent.options(),
    )  # fmt: skip
