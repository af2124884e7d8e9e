"""The stored table: which tile each shape has, how long it takes, and how it was proved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sdopt.engine.tables import tiles_in
from sdopt.engine.tiles import Tile, current_key
from sdopt.errors import BrokenFileError
from sdopt.util.files import cause, check_plain, write_whole
from sdopt.util.precision import chosen_dtype

MEASURE = "measure one with `sdopt tune` and no other option"
NUMBERS = ("us", "library_us", "own_us", "tflops")


def read_table(path: Path) -> dict[str, Any]:
    """What was written there before. Raises BrokenFileError if that is no such file."""
    try:
        check_plain(path)
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenFileError(
            f"{path} cannot be read: {cause(error)}; name a table with --out, or {MEASURE}"
        ) from error
    try:
        if not {"tiles", "measured"} <= set(table):
            raise ValueError("it has no 'tiles' and 'measured'")
        tiles_in(table)
        for part in table.keys() & {"tiles", "measured", "proof"}:
            table[part] = {current_key(key): value for key, value in table[part].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenFileError(
            f"{path} is no table of tiles: {cause(error)}; name a table with --out, or {MEASURE}"
        ) from error
    return table


def tiles_of(table: Mapping[str, Any]) -> dict[str, Tile]:
    """By key."""
    return tiles_in(table)


def write_table(path: Path, before: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What was found, beside what was there before of other shapes; the whole of it."""
    content = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "tiles": before["tiles"] | {key: one["tile"] for key, one in found.items()},
        "measured": before["measured"]
        | {key: {name: round(one[name], 2) for name in NUMBERS} for key, one in found.items()},
        "proof": {key: one for key, one in before.get("proof", {}).items() if key not in found}
        | {key: one["proof"] for key, one in found.items() if one["proof"] is not None},
    }
    store(path, content)
    return content


def store(path: Path, table: Mapping[str, Any]) -> None:
    """The whole table in place of the one before."""
    write_whole(path, json.dumps(table, indent=1).encode() + b"\n")


def circumstances() -> dict[str, str]:
    """With what a tile is timed and proved here; read once, on the GPU."""
    import pynvml
    import triton

    pynvml.nvmlInit()
    return {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "dtype": chosen_dtype("cuda"),
        "date": datetime.now(UTC).date().isoformat(),
    }


def cut_of(tile: Mapping[str, Any]) -> str:
    """A tile's fields in short: a program's share, stages, how x comes, and splits of the sum."""
    if tile["library"]:
        return "the library"
    comes = "w{warps}"
    if tile["stationary"]:
        comes = "weights stay"
    elif tile["specialized"]:
        comes = "2 boxes"
    elif tile["boxed"]:
        comes = "w{warps} boxed"
    more = [name for name in ("ahead", "pointers") if tile[name]]
    more += ["polynomial {polynomial}"] if tile["polynomial"] else []
    form = "{images}x{height}x{width}x{columns}+{extra}x{depth} s{stages} " + comes + " /{splits}"
    return " ".join([form, *more]).format(**tile)


def row(key: str, found: Mapping[str, Any]) -> str:
    """A line for the terminal: both times and the fastest own cut."""
    return (
        f"{key:34s} {found['us']:8.1f} us {found['tflops']:6.0f} TFLOP/s"
        f"  library {found['library_us']:8.1f}  own {found['own_us']:8.1f}  {cut_of(found['own'])}"
    )
