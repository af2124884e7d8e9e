"""Launch the kernel whose weights stay: descriptors and a program for each multiprocessor."""

from __future__ import annotations

from torch import Tensor
from triton import cdiv

from sdopt.engine import cards, dependent
from sdopt.engine.specialized_launch import boxes
from sdopt.engine.tiles import Tile


def geglu(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, tile: Tile) -> None:
    """`stationary.sdopt_geglu` of x (rows, K) by `weight` (2 * N, K) into `out` (rows, N).

    As many programs as the card has multiprocessors, the same number for each block of columns.
    Raises ValueError for what the tile's weights do not cover whole.
    """
    from sdopt.engine import stationary

    (rows, k), columns = x.shape, out.shape[1]
    card = cards.card_of(x.device) if x.is_cuda else cards.H100  # compiled only
    if not tile.keeps(k, columns, card.shared_bytes):
        raise ValueError(f"weights of {k} entries by {columns} columns do not stay in {tile}")
    across = columns // tile.columns
    down = min(max(1, card.multiprocessors // across), cdiv(rows, tile.pixels))
    stationary.sdopt_geglu[(across, down)](
        boxes(x, [tile.pixels, tile.depth]),
        boxes(weight.view(2, columns, k), [2, tile.columns, tile.depth]),
        bias, out, rows, columns, BN=tile.columns, BK=tile.depth, STEPS=k // tile.depth,
        STAGES=tile.stages, num_warps=4,
        **dependent.options(),
    )  # fmt: skip
