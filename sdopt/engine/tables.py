"""Which tile a shape has on a card: one measured there, one of a card like it, or one by rule.

A user's own table, which `sdopt tune` writes, comes before the one that ships with the engine for
the card's family, which another card of it was measured for. That has the shapes that the own one
lacks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdopt.engine.cards import H100, Card
from sdopt.engine.rules import (
    FEWEST_SPECIALIZED_COLUMNS,
    SPECIALIZED_DEPTH,
    ruled_attention,
    ruled_convolution,
    ruled_float8_convolution,
    ruled_float8_product,
    ruled_product,
    ruled_specialized_convolution,
)
from sdopt.engine.tile_checks import misfit
from sdopt.engine.tiles import (
    FLOAT8,
    Sizes,
    Tile,
    attention_key,
    convolution_key,
    current_key,
    product_key,
)
from sdopt.errors import BrokenFileError
from sdopt.util.files import cause, check_plain
from sdopt.util.places import tiles_folder

SHIPPED = Path(__file__).with_name("tables")
FIELDS = frozenset(field.name for field in fields(Tile))
MOST_TIMES = 16
"""As many times the images of a measured shape use its tile."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Measured tiles by shape, and the card and file that they are of."""

    path: Path
    device: str
    tiles: dict[str, Tile]


def own_table(card: Card) -> Path:
    """Where `sdopt tune` keeps what it measured on this card."""
    return tiles_folder() / f"{card.family}-{card.multiprocessors}.json"


def shipped_table(card: Card) -> Path:
    """That of the card's family."""
    return SHIPPED / f"{card.family}.json"


def used_tables(card: Card) -> tuple[Path, ...]:
    """Those that there are of the card's own one and the one that ships, in order of precedence."""
    return tuple(path for path in (own_table(card), shipped_table(card)) if path.exists())


def table_of(card: Card) -> Table | None:
    """The card's own table, with the tiles that ship where it has none; None if cut by rule."""
    paths = used_tables(card)
    return _together(paths, card.pointers) if paths else None


@lru_cache
def _together(paths: tuple[Path, ...], pointers: bool) -> Table:
    """The first table, with the tiles of the others for shapes that it lacks."""
    tables = [_read(path, pointers) for path in paths]
    tiles = {key: tile for table in reversed(tables) for key, tile in table.tiles.items()}
    return replace(tables[0], tiles=tiles)


def _read(path: Path, pointers: bool) -> Table:
    """A file's table, for cards that read so. Raises BrokenFileError for any other file."""
    try:
        check_plain(path)
        stored: Any = json.loads(path.read_text(encoding="utf-8"))
        tiles = tiles_in(stored)
        if not (isinstance(device := stored.get("device"), str) and device):
            raise ValueError("it does not say which 'device' it was measured on")
        for key, tile in tiles.items():
            if not reads_as(key, tile, pointers):
                raise ValueError(
                    f"{key}: the tile is one that reads through "
                    f"{'descriptors' if pointers else 'pointers'}, and this card does not; the "
                    f"table is of {device}"
                )
        return Table(path=path, device=device, tiles=tiles)
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenFileError(
            f"{path} is no table of tiles: {cause(error)}; remove it, and `sdopt tune` writes "
            "another one"
        ) from error


def reads_as(key: str, tile: Tile, pointers: bool) -> bool:
    """Whether a tile reads as a card does: through pointers, or through descriptors."""
    if tile.library:
        return True
    return not (tile.boxed and pointers) if "attention" in key else tile.pointers == pointers


def tiles_in(table: Any) -> dict[str, Tile]:
    """By key. Raises ValueError for what is no table."""
    rows = table.get("tiles") if isinstance(table, dict) else None
    if not isinstance(rows, dict):
        raise ValueError("it has no 'tiles' by shape")
    tiles = {}
    for name, values in rows.items():
        key = current_key(name)
        if not isinstance(values, dict):
            raise ValueError(f"{name}: a tile is an object of fields")
        if unknown := sorted(set(values) - FIELDS):
            raise ValueError(f"{name}: a tile has no field {unknown[0]!r}")
        try:
            tiles[key] = Tile(**values)
        except TypeError as error:  # a stationary one compares some of them
            raise ValueError(f"{name}: a field has a value of another type: {error}") from error
        if wrong := misfit(key, tiles[key]):
            raise ValueError(f"{name}: {wrong}")
    return tiles


def tuned(card: Card = H100) -> dict[str, Tile]:
    """The tiles that were measured for it or for a card of its family, by shape."""
    table = table_of(card)
    return {} if table is None else table.tiles


def described(card: Card) -> str:
    """Where a card's tiles come from, in one sentence."""
    table = table_of(card)
    if table is None:
        return (
            f"{card} has no table of tiles: kernels are cut by rule, "
            "which is right but slower; run `sdopt tune` on it"
        )
    if table.path == own_table(card):
        others = ", and those that ship where it has none" * (len(used_tables(card)) > 1)
        return f"{card}: tiles of {table.path}{others}"
    if card.name.startswith(table.device):
        return f"{card}: tiles measured on such a card"
    return f"{card}: tiles measured on {table.device}; `sdopt tune` measures those of this card"


def noted(card: Card) -> str:
    """'sm_90.json 1a2b3c4d', 'own sm_90-132.json 5e6f7a8b' or 'by rule', for a run's history.

    The digest is of the tiles alone, without how they were measured and proved, and of what of them
    is not the default: a field that tiles get later changes no table.
    """
    table = table_of(card)
    if table is None:
        return "by rule"
    usual = asdict(Tile())
    cuts = {
        key: {name: value for name, value in asdict(tile).items() if value != usual[name]}
        for key, tile in sorted(table.tiles.items())
    }
    digest = hashlib.sha256(json.dumps(cuts, sort_keys=True).encode()).hexdigest()[:8]
    return f"{'own ' * (table.path == own_table(card))}{table.path.name} {digest}"


def convolution_tile(sizes: Sizes, n: int, kind: str, card: Card) -> Tile:
    """The measured tile of this convolution, that of fewer images, or one by rule."""
    images, height, width, c = sizes
    for times in _times(images):
        for kind_or_like in dict.fromkeys((kind, kind.replace("plain", "conv"))):
            key = convolution_key((images // times, height, width, c), n, kind_or_like)
            if (tile := _stored(key, card)) is not None:
                return _less_split(tile, times)
    if kind.startswith(FLOAT8):
        return ruled_float8_convolution(sizes, n, card)
    if card.specialized and c % SPECIALIZED_DEPTH == 0 and n >= FEWEST_SPECIALIZED_COLUMNS:
        return ruled_specialized_convolution(sizes, n, kind, card)
    return ruled_convolution(sizes, n, kind, card)


def product_tile(m: int, k: int, n: int, kind: str, card: Card) -> Tile:
    """The measured tile of this matrix product, that of fewer rows, or one by rule."""
    gated = (k, n) if kind == "geglu" else None
    for times in _times(m):
        for kind_or_like in dict.fromkeys((kind, kind.replace("added", "linear"))):
            key = product_key(m // times, k, n, kind_or_like)
            if (tile := _stored(key, card, gated)) is not None:
                return _less_split(tile, times)
    if kind.startswith(FLOAT8):
        return ruled_float8_product(m, k, n, kind.removeprefix(FLOAT8), card)
    return ruled_product(m, k, n, kind, card)


def attention_tile(sizes: tuple[int, int, int], heads: int, size: int, card: Card) -> Tile:
    """The measured tile of this attention, that of fewer images, or one by rule."""
    images, tokens, keys = sizes
    for times in _times(images):
        key = attention_key((images // times, tokens, keys), heads, size)
        if (tile := _stored(key, card)) is not None:
            return tile
    return ruled_attention(keys, size, card)


def _stored(key: str, card: Card, gated: tuple[int, int] | None = None) -> Tile | None:
    """A measured tile that the card takes; a stationary one only of GEGLU whose weights it keeps.

    `gated` are the entries of the sum and the columns of GEGLU in the model's own dtype.
    """
    tile = tuned(card).get(key)
    if tile is None or (tile.specialized and not card.specialized):
        return None
    kept = gated is not None and tile.keeps(*gated, card.shared_bytes)
    return None if tile.stationary and not kept else tile


def _times(number: int) -> Iterator[int]:
    """The powers of 2 that divide it, up to MOST_TIMES; 1 is the shape itself."""
    times = 1
    while times <= MOST_TIMES and number % times == 0:
        yield times
        times *= 2


def _less_split(tile: Tile, times: int) -> Tile:
    """The tile for so many times as many pixels: they fill the device with fewer splits."""
    return replace(tile, splits=max(1, tile.splits // times))
