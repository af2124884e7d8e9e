"""Rows of the recipes in a file, checked before anything is made of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from studies.rows import Row, Rows, damaged_rows, is_number_from_0, read_rows, wrong, wrong_numbers

FIELDS = ("recipe", "ground", "work")


def read_recipes(path: Path) -> Rows:
    """The rows of a file. Raises BrokenFileError for another file, and for rows that cannot be."""
    rows = read_rows(path, *FIELDS)
    for name, row in rows.rows.items():
        for what in _faults(row):
            raise damaged_rows(path, f"row {name!r}: {what}")
    return rows


def _faults(row: Row) -> Iterator[str]:
    """What cannot be, by its field; only the first one is sure."""
    for name in (*FIELDS, *({"version", "error"} & row.keys())):
        if not isinstance(row[name], str):
            yield wrong(row, name, "no text")
    if "error" in row:
        return
    rounds = row.get("rounds_ms")
    if not isinstance(rounds, list) or not rounds or not all(map(is_number_from_0, rounds)):
        yield wrong(row, "rounds_ms", "no list of milliseconds")
    yield from wrong_numbers(row, ["first_call_s"])
    if "peak_allocated_mib" not in row or row["peak_allocated_mib"] is not None:
        yield from wrong_numbers(row, ["peak_allocated_mib", "peak_reserved_mib"])
    faults = row.get("faults", {})
    if not isinstance(faults, dict) or not all(isinstance(one, str) for one in faults.values()):
        yield wrong(row, "faults", "no texts by prompt")
    ssim = row.get("ssim_cost") or {}
    if not isinstance(ssim, dict) or not all(isinstance(one, int | float) for one in ssim.values()):
        yield wrong(row, "ssim_cost", "no numbers by prompt")
