"""How a kernel's work is cut where nobody measured it: by the shape and the card alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sdopt.engine.cards import HOPPER, Card
from sdopt.engine.tiles import LIBRARY, Sizes, Tile

SPECIALIZED_DEPTH, FEWEST_SPECIALIZED_COLUMNS = 64, 128
"""What the rule for specialized tiles loads at a time, and the least width that it is for."""
FLOAT8_DEPTH, FEWEST_FLOAT8_COLUMNS = 128, 64
"""A row of a box is 128 bytes, as in float16."""
POINTER_STAGES = 3
"""With 128 x 128 x 64 entries 96 KiB at most, which the smallest card has room for."""
MOST_KEYS = 256
"""Whose attention has a tile by rule: the library has to clear a counter before it begins."""


def ruled_convolution(sizes: Sizes, n: int, kind: str, card: Card) -> Tile:
    """128 pixels by 64 channels, and the sum split until all multiprocessors have work.

    Through pointers by 128 channels, where that leaves none of them without work.
    """
    images, height, width, c = sizes
    if kind == "downsample":
        height, width = height // 2, width // 2
    wide = min(16, _power_below(width))
    high = min(128 // wide, _power_above(height))
    several = min(128 // (wide * high), _power_above(images))
    down = -(-images // several) * -(-height // high) * -(-width // wide)
    down *= 4 if kind == "upsample" else 1
    taps = 4 if kind == "upsample" else 9
    cut = _cut(down, several * high * wide, n, card)
    tiles = down * -(-n // cut["columns"])
    splits = 1 if kind == "upsample" else _splits(tiles, taps * -(-c // 64), card)
    # A matrix unit works on 64 rows at least: smaller images leave the rest of the box empty.
    if several * high * wide < 64:
        high = 64 // (several * wide)
    return Tile(images=several, height=high, width=wide, splits=splits, **cut)


def ruled_specialized_convolution(sizes: Sizes, n: int, kind: str, card: Card) -> Tile:
    """Two boxes of 64 pixels by 128 channels, or 160 where those divide the width."""
    images, height, width, c = sizes
    if kind == "downsample":
        height, width = height // 2, width // 2
    wide = min(32, _power_below(width))
    high = min(64 // wide, _power_above(height))
    several = 64 // (wide * high)
    columns, extra = (128, 32) if n % 160 == 0 and n % 128 else (128, 0)
    tiles = -(-images // several) * -(-height // high) * -(-width // wide)
    programs = -(-tiles // 2) * -(-n // (columns + extra))
    taps = 4 if kind == "upsample" else 9
    splits = (
        1 if kind == "upsample" else _splits(2 * programs, taps * -(-c // SPECIALIZED_DEPTH), card)
    )
    return Tile(
        images=several, height=high, width=wide, columns=columns, extra=extra, stages=5,
        splits=splits, specialized=True,
    )  # fmt: skip


def ruled_float8_convolution(sizes: Sizes, n: int, card: Card) -> Tile:
    """`ruled_specialized_convolution` in float8: twice as deep in as many bytes."""
    if not fits_float8(sizes[3], n, card):
        return LIBRARY
    tile = ruled_specialized_convolution((*sizes[:3], sizes[3] // 2), n, "conv", card)
    return replace(tile, depth=FLOAT8_DEPTH)


def ruled_float8_product(m: int, k: int, n: int, kind: str, card: Card) -> Tile:
    """Two boxes of 64 rows by 128 columns, by 64 where those leave multiprocessors without work.

    GEGLU has as many columns of the gate.
    """
    if not fits_float8(k, n, card):
        return LIBRARY
    down = -(-m // 128)
    columns = 128 if n >= 128 and down * -(-n // 128) >= card.multiprocessors else 64
    extra = columns if kind == "geglu" else 0
    splits = 1 if extra else _splits(2 * down * -(-n // columns), -(-k // FLOAT8_DEPTH), card)
    return Tile(
        height=64, width=1, columns=columns, extra=extra, depth=FLOAT8_DEPTH,
        stages=3 if extra == 128 else 4, splits=splits, specialized=True,
    )  # fmt: skip


def fits_float8(k: int, n: int, card: Card) -> bool:
    """Whether the kernel for float8 computes so many channels; others are left to the library."""
    return card.specialized and k % 16 == 0 and n % 8 == 0 and n >= FEWEST_FLOAT8_COLUMNS


def ruled_product(m: int, k: int, n: int, kind: str, card: Card) -> Tile:
    """128 rows by 64 columns (64 for few rows), split like a convolution."""
    rows = 128 if m > 64 else 64
    down = -(-m // rows)
    cut = _cut(down, rows, n, card)
    if kind == "geglu" and card.pointers:  # the gate's sums need as many registers
        cut = {**_cut(down, rows, min(n, 64), card), "warps": 8 if rows == 128 else 4}
    splits = 1 if kind == "geglu" else _splits(down * -(-n // cut["columns"]), -(-k // 64), card)
    return Tile(height=rows, width=1, splits=splits, **cut)


def ruled_attention(keys: int, size: int, card: Card) -> Tile:
    """Few keys, such as those of a prompt, by 64 tokens; more of them by the library."""
    if keys > MOST_KEYS:
        return LIBRARY
    hopper = card.capability == HOPPER and not card.pointers
    # Sums share the registers with scores, and before Hopper with operands too.
    most, warps = (32, 8) if size > 128 else (128, 4) if hopper else (64, 4)
    columns = max(16, min(_power_above(keys), most))
    return Tile(height=64, width=1, columns=columns, stages=2, warps=warps)


def _cut(down: int, pixels: int, n: int, card: Card) -> dict[str, Any]:
    """Columns, stages and warps of a tile of so many pixels, `down` of which make a result."""
    columns = 16 if n <= 16 else 32 if n <= 32 else 64
    if not card.pointers:
        return {"columns": columns}
    if n >= 128 and pixels == 128 and down * -(-n // 128) >= card.multiprocessors:
        return {"columns": 128, "stages": POINTER_STAGES, "warps": 8, "pointers": True}
    return {"columns": columns, "stages": POINTER_STAGES, "pointers": True}


def _splits(tiles: int, blocks: int, card: Card) -> int:
    """As many as fill the multiprocessors twice, each with 8 blocks of the sum or more."""
    return max(1, min(2 * card.multiprocessors // tiles, blocks // 8, 8))


def _power_below(number: int) -> int:
    return 1 << (number.bit_length() - 1)


def _power_above(number: int) -> int:
    return 1 << (number - 1).bit_length()
