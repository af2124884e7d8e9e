"""How a kernel's work is cut: tiles measured for known shapes, a rule for all others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

TUNED = Path(__file__).with_name("tuned.json")
OLD_KINDS = {"doubled": "upsample", "halved": "downsample"}
MULTIPROCESSORS = 132
"""Of an H100 or H200: how many tiles can be worked on at once."""

SPECIALIZED_DEPTH, FEWEST_SPECIALIZED_COLUMNS = 64, 128
"""What the rule for specialized tiles loads at a time, and the least width that it is for."""

MOST_TIMES = 16
"""As many times the images of a measured shape use its tile."""

MOST_KEYS = 256
"""Whose attention has a tile by rule: the library has to clear a counter before it begins."""

Sizes = tuple[int, int, int, int]
"""Images, height, width and channels of a convolution's input."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One program's share: `images` x `height` x `width` pixels by `columns` of the result.

    A program computes `extra` columns more, where powers of 2 do not fit the width.
    `depth` entries of the sum are loaded at a time, `stages` such loads are under way, and the sum
    is cut into `splits` that different programs compute. A matrix product's rows are its `height`.
    Attention's has `height` tokens and `columns` keys at a time; `boxed` ones come through the
    tensor memory accelerator. A `specialized` tile is a program of three roles
    (`sdopt.engine.specialized`) and has two such boxes; GEGLU's `extra` columns are then the gate,
    and `warps` says nothing. One with `pointers` reads without that accelerator, for GPUs that have
    none. `library` leaves the operation to cuDNN or cuBLAS.
    """

    images: int = 1
    height: int = 8
    width: int = 16
    columns: int = 64
    extra: int = 0
    depth: int = 64
    stages: int = 4
    warps: int = 4
    splits: int = 1
    boxed: bool = False
    specialized: bool = False
    pointers: bool = False
    library: bool = False

    @property
    def pixels(self) -> int:
        """Rows of the matrix product that one program computes."""
        return self.images * self.height * self.width


LIBRARY = Tile(library=True)


def convolution_key(sizes: Sizes, n: int, kind: str) -> str:
    """The name of a convolution's shape: 'conv 2x64x64x320-320'; `kind` is conv, plain, upsample or
    downsample.

    A plain one has no bias and no residual, for which the library needs kernels of their own.
    """
    return f"{kind} {'x'.join(map(str, sizes))}-{n}"


def product_key(m: int, k: int, n: int, kind: str) -> str:
    """The name of a matrix product's shape: 'linear 8192x320-320'; `kind` is linear or geglu."""
    return f"{kind} {m}x{k}-{n}"


def attention_key(sizes: tuple[int, int, int], heads: int, size: int) -> str:
    """The name of an attention's shape, `sizes` its images, tokens and keys: '2x4096x77-8x40'."""
    return f"attention {'x'.join(map(str, sizes))}-{heads}x{size}"


@lru_cache
def tuned() -> dict[str, Tile]:
    """The tiles that were measured, by shape; `sdopt tune` writes them."""
    if not TUNED.exists():
        return {}
    stored = json.loads(TUNED.read_text(encoding="utf-8"))
    return {current_key(key): Tile(**fields) for key, fields in stored["tiles"].items()}


def current_key(key: str) -> str:
    """A key of an older table as it is called now."""
    kind, space, shape = key.partition(" ")
    return OLD_KINDS.get(kind, kind) + space + shape


def convolution_tile(sizes: Sizes, n: int, kind: str, *, specialized: bool = False) -> Tile:
    """The measured tile of this convolution, that of fewer images, or one by rule.

    `specialized` says whether the device takes such tiles; otherwise the rule replaces them.
    """
    images, height, width, c = sizes
    for times in _times(images):
        for kind_or_like in (kind, "conv") if kind == "plain" else (kind,):
            key = convolution_key((images // times, height, width, c), n, kind_or_like)
            if _is_stored(key, specialized):
                return _less_split(tuned()[key], times)
    if specialized and c % SPECIALIZED_DEPTH == 0 and n >= FEWEST_SPECIALIZED_COLUMNS:
        return ruled_specialized_convolution(sizes, n, kind)
    return ruled_convolution(sizes, n, kind)


def product_tile(m: int, k: int, n: int, kind: str, *, specialized: bool = False) -> Tile:
    """The measured tile of this matrix product, that of fewer rows, or one by rule."""
    for times in _times(m):
        key = product_key(m // times, k, n, kind)
        if _is_stored(key, specialized):
            return _less_split(tuned()[key], times)
    return ruled_product(m, k, n, kind)


def _is_stored(key: str, specialized: bool) -> bool:
    return key in tuned() and (specialized or not tuned()[key].specialized)


def attention_tile(sizes: tuple[int, int, int], heads: int, size: int) -> Tile:
    """The measured tile of this attention, that of fewer images, or one by rule."""
    images, tokens, keys = sizes
    for times in _times(images):
        key = attention_key((images // times, tokens, keys), heads, size)
        if key in tuned():
            return tuned()[key]
    return ruled_attention(keys, size)


def _times(number: int) -> Iterator[int]:
    """The powers of 2 that divide it, up to MOST_TIMES; 1 is the shape itself."""
    times = 1
    while times <= MOST_TIMES and number % times == 0:
        yield times
        times *= 2


def _less_split(tile: Tile, times: int) -> Tile:
    """The tile for so many times as many pixels: they fill the device with fewer splits."""
    return replace(tile, splits=max(1, tile.splits // times))


def ruled_convolution(sizes: Sizes, n: int, kind: str) -> Tile:
    """128 pixels by 64 channels, and the sum split until all multiprocessors have work."""
    images, height, width, c = sizes
    if kind == "downsample":
        height, width = height // 2, width // 2
    wide = min(16, _power_below(width))
    high = min(128 // wide, _power_above(height))
    several = min(128 // (wide * high), _power_above(images))
    columns = 16 if n <= 16 else 32 if n <= 32 else 64
    tiles = -(-images // several) * -(-height // high) * -(-width // wide) * -(-n // columns)
    taps = 4 if kind == "upsample" else 9
    tiles *= 4 if kind == "upsample" else 1
    splits = 1 if kind == "upsample" else _splits(tiles, taps * -(-c // 64))
    # A matrix unit works on 64 rows at least: smaller images leave the rest of the box empty.
    if several * high * wide < 64:
        high = 64 // (several * wide)
    return Tile(images=several, height=high, width=wide, columns=columns, splits=splits)


def ruled_specialized_convolution(sizes: Sizes, n: int, kind: str) -> Tile:
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
    splits = 1 if kind == "upsample" else _splits(2 * programs, taps * -(-c // SPECIALIZED_DEPTH))
    return Tile(
        images=several, height=high, width=wide, columns=columns, extra=extra, stages=5,
        splits=splits, specialized=True,
    )  # fmt: skip


def ruled_product(m: int, k: int, n: int, kind: str) -> Tile:
    """128 rows by 64 columns (64 for few rows), split like a convolution."""
    rows = 128 if m > 64 else 64
    columns = 16 if n <= 16 else 32 if n <= 32 else 64
    tiles = -(-m // rows) * -(-n // columns)
    splits = 1 if kind == "geglu" else _splits(tiles, -(-k // 64))
    return Tile(height=rows, width=1, columns=columns, splits=splits)


def ruled_attention(keys: int, size: int) -> Tile:
    """Few keys, such as those of a prompt, by 64 tokens; more of them by the library."""
    if keys > MOST_KEYS:
        return LIBRARY
    columns = min(_power_above(keys), 128 if size <= 128 else 64)
    return Tile(height=64, width=1, columns=max(16, columns), stages=2)


def _splits(tiles: int, blocks: int) -> int:
    """As many as fill the multiprocessors twice, each with 8 blocks of the sum or more."""
    return max(1, min(2 * MULTIPROCESSORS // tiles, blocks // 8, 8))


def _power_below(number: int) -> int:
    return 1 << (number.bit_length() - 1)


def _power_above(number: int) -> int:
    return 1 << (number - 1).bit_length()
