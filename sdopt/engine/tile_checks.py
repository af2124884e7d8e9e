"""What a table may say of a tile: a hand-edited one is refused, not computed with."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from sdopt.engine.tiles import FLOAT8, Tile

_IMAGE, _MATRIX, _HEADS = (4, 1), (2, 1), (3, 2)
KINDS = {
    **dict.fromkeys(("conv", "plain", "upsample", "downsample"), _IMAGE),
    **dict.fromkeys(("linear", "added", "joined", "geglu"), _MATRIX),
    "attention": _HEADS,
}
"""Of each operation, how many numbers its key has before the dash and behind it."""
FORMS = {
    _IMAGE: "IMAGESxHEIGHTxWIDTHxCHANNELS-COLUMNS",
    _MATRIX: "ROWSxK-COLUMNS",
    _HEADS: "IMAGESxTOKENSxKEYS-HEADSxSIZE",
}
IN_FLOAT8 = frozenset({"conv", "plain", "linear", "geglu"})
SIDES = ("images", "height", "width", "columns", "depth")
LEAST = {"extra": 0, "polynomial": 0, "columns": 16, "depth": 16}
MOST = {"stages": 16, "splits": 64, "warps": 16, "depth": 128}
MOST_OF_OTHERS = 256
PIXELS = range(16, 257)
"""Of a program; larger ones compile for minutes, and no register holds their sums."""
MOST_SUMS = 2**15
ATTENDING_WARPS = (8, 12)
"""Of specialized attention: four for each of two or three consumers."""


def misfit(key: str, tile: Tile) -> str:
    """Why a kernel must not be launched with this tile for a shape, by its key; '' if it may.

    What a card has no room for is another question, which the machine code answers.
    """
    kind, _, shape = key.removeprefix(FLOAT8).partition(" ")
    if wrong := _wrong_key(key, kind, shape) or _wrong_value(tile):
        return wrong
    if tile.library:
        return ""
    sums = tile.pixels * (tile.columns + (0 if kind == "attention" else tile.extra))
    if tile.pixels not in PIXELS or sums > MOST_SUMS:
        return (
            f"{tile.pixels} pixels by {tile.columns} + {tile.extra} columns: {PIXELS[0]} to "
            f"{PIXELS[-1]} pixels are wanted, and {MOST_SUMS} sums at most"
        )
    if not tile.specialized and tile.warps & (tile.warps - 1):
        return f"warps is {tile.warps}, a power of 2 is wanted"
    if kind == "attention":
        return _of_attention(shape, tile)
    if tile.ahead or tile.polynomial:
        return "ahead and polynomial are attention's"
    if kind in ("geglu", "upsample") and tile.splits > 1:
        return f"splits is {tile.splits}: {kind} has no sum that can be split"
    gate = tile.columns if tile.specialized else 0
    if kind == "geglu" and tile.extra != gate:
        return f"extra is {tile.extra}: such a tile of GEGLU has {gate}"
    if key.startswith(FLOAT8) and not tile.specialized:
        return "operands in float8 take a specialized tile"
    return ""


def _wrong_key(key: str, kind: str, shape: str) -> str:
    """Why a key is none that an operation looks for."""
    if kind not in KINDS:
        return f"{key!r} names no operation; choose from: {', '.join(KINDS)}"
    if key.startswith(FLOAT8) and kind not in IN_FLOAT8:
        return f"{key!r}: {kind} is not computed in float8"
    before, behind = KINDS[kind]
    number = "[1-9][0-9]*"
    if not re.fullmatch("x".join([number] * before) + "-" + "x".join([number] * behind), shape):
        return f"{key!r}: the shape of {kind} is written {FORMS[KINDS[kind]]}"
    return ""


def _wrong_value(tile: Tile) -> str:
    """The first field with a value of another type, or out of its range."""
    for one in fields(tile):
        value: Any = getattr(tile, one.name)
        kind = bool if isinstance(one.default, bool) else int
        if type(value) is not kind:
            return f"{one.name} is {value!r}, {kind.__name__} is wanted"
        if isinstance(value, bool):
            continue
        least, most = LEAST.get(one.name, 1), MOST.get(one.name, MOST_OF_OTHERS)
        if not least <= value <= most:
            return f"{one.name} is {value}, {least} to {most} is wanted"
        if one.name in (*SIDES, "extra") and value & (value - 1):
            return f"{one.name} is {value}, a power of 2 is wanted"
    return ""


def _of_attention(shape: str, tile: Tile) -> str:
    if not tile.specialized:
        return ""
    keys, size = (int(part.split("x")[-1]) for part in shape.rsplit("-", 1))
    if tile.warps not in ATTENDING_WARPS:
        return f"warps is {tile.warps}: specialized attention has 8 or 12"
    if tile.polynomial not in (0, 8, 16):
        return f"polynomial is {tile.polynomial}, 0, 8 or 16 is wanted"
    if keys % (tile.columns * (1 + tile.ahead)):
        return f"{keys} keys are no multiple of {tile.columns * (1 + tile.ahead)}"
    if size > tile.depth + tile.extra:
        return f"heads of {size} entries are more than {tile.depth} + {tile.extra}"
    return ""
