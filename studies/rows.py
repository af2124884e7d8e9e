"""A JSON file of measured rows that grows row by row, all made on one machine by one stack."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from statistics import fmean, median
from typing import Any

from sdopt.bench.stored.soundness import is_number
from sdopt.errors import BrokenFileError
from sdopt.util.files import damaged, given, read_json, write_whole
from sdopt.util.git import is_tracked

SCHEMA = "sdopt-rows/1"
NEXT_STEP = "give another file, or measure"
SHOWN = 80
"""Characters of a wrong value that a message repeats."""

Row = Mapping[str, Any]
"""What was measured of one thing: `name`, `rounds_ms` and more, or `error` in the place of them."""


@dataclass(kw_only=True)
class Rows:
    """Rows by name, and what they were made on: device, source, versions."""

    path: Path
    made_on: Mapping[str, Any]
    rows: dict[str, Row] = field(default_factory=dict)

    def put(self, row: Row) -> None:
        """Add the row, in the place of one of that name, and write the file whole."""
        self.rows[row["name"]] = {**row, "measured_at": datetime.now(UTC).isoformat("T", "seconds")}
        content = {
            "schema": SCHEMA,
            "made_on": dict(self.made_on),
            "rows": list(self.rows.values()),
        }
        write_whole(self.path, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")


def read_rows(path: Path, *fields: str) -> Rows:
    """The rows of a file, each with these fields.

    Raises BrokenFileError if it is missing, broken or another file, or has rows of something else.
    """
    data = _read(path)
    if data.get("schema") != SCHEMA:
        told = wrong(data, "schema", f"not {SCHEMA!r}")
        raise BrokenFileError(f"{path} is no file of rows: its {told}; {NEXT_STEP}")
    for what in _faults(data):
        raise damaged_rows(path, what)
    rows = {row["name"]: row for row in data["rows"]}
    if lacking := [name for name in fields if any(name not in row for row in rows.values())]:
        raise BrokenFileError(
            f"{path} has rows of something else, without {', '.join(lacking)}; {NEXT_STEP}"
        )
    return Rows(path=path, made_on=dict(data["made_on"]), rows=rows)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except BrokenFileError:
        if is_tracked(path):
            raise
        with given(path, NEXT_STEP):
            raise


def heading(rows: Rows) -> str:
    """What they were made on, above a table of them: 'NVIDIA H200, source sd15-random'.

    Raises BrokenFileError for a file without rows, or that does not say.
    """
    if not rows.rows:
        raise BrokenFileError(f"{rows.path} has no rows to make a table of; {NEXT_STEP}")
    for name in ("device", "source"):
        if not isinstance(rows.made_on.get(name), str):
            raise damaged_rows(rows.path, f"made_on: {wrong(rows.made_on, name, 'no text')}")
    return "{device}, source {source}".format(**rows.made_on)


def damaged_rows(path: Path, what: str) -> BrokenFileError:
    """The error of a file of rows in which `what` cannot be, with the next step."""
    if is_tracked(path):
        return damaged(path, f"is damaged: {what}")
    return BrokenFileError(f"{path} is damaged: {what}; {NEXT_STEP}")


def wrong(record: Mapping[str, Any], name: str, wanted: str) -> str:
    """'ms is "much", no number', with the value as the file has it; or 'ms is missing'."""
    if name not in record:
        return f"{name} is missing"
    text = json.dumps(record[name], ensure_ascii=False)
    return f"{name} is {text if len(text) <= SHOWN else text[:SHOWN] + '...'}, {wanted}"


def wrong_numbers(record: Mapping[str, Any], names: Iterable[str]) -> Iterator[str]:
    """Of these fields, those that are no number from 0 on."""
    for name in names:
        if not is_number_from_0(record.get(name)):
            yield wrong(record, name, "no number from 0 on")


def is_number_from_0(value: Any) -> bool:
    """As every time, size and count is."""
    return is_number(value) and value >= 0


def _faults(data: Mapping[str, Any]) -> Iterator[str]:
    """What cannot be in any file of rows, by its field; only the first one is sure."""
    for name, kind, wanted in (("made_on", dict, "no object"), ("rows", list, "no list")):
        if not isinstance(data.get(name), kind):
            yield wrong(data, name, wanted)
    names = set()
    for number, row in enumerate(data["rows"]):
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            yield f"rows[{number}] is no object with a name"
        if row["name"] in names:
            yield f"it has two rows of the name {row['name']!r}"
        names.add(row["name"])
        for place in _not_finite(row, ""):
            yield f"row {row['name']!r}: {place} is no finite number"


def _not_finite(value: object, field: str) -> Iterator[str]:
    """The fields below `value` whose numbers no measurement gives."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _not_finite(inner, f"{field}.{name}" if field else name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _not_finite(inner, f"{field}[{number}]")
    elif isinstance(value, int | float) and not _is_finite(value):
        yield field


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # JSON has integers of any length
        return False


def continue_rows(path: Path, made_on: Mapping[str, Any]) -> Rows:
    """The file's rows, or none yet.

    Raises BrokenFileError for rows that were made on something else: they are neither mixed with
    others nor thrown away.
    """
    if not path.exists():
        return Rows(path=path, made_on=made_on)
    found = read_rows(path)
    if found.made_on != dict(made_on):
        there, here = _apart(found.made_on, made_on)
        raise BrokenFileError(
            f"{path} holds rows that were made on {there}; this is {here}: name another file with "
            "--json"
        )
    return found


def set_aside(path: Path, made_on: Mapping[str, Any]) -> Path | None:
    """Rename a file whose rows were made on something else; its new name, or None if it may stay.

    For a file whose place is fixed, so that no option names another one.
    """
    if not path.exists() or read_rows(path).made_on == dict(made_on):
        return None
    names = (path.with_stem(f"{path.stem}-before-{number}") for number in count(1))
    aside = next(name for name in names if not name.exists())
    return path.rename(aside)


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, str]:
    """What differs, as each of the two has it."""
    sides = dict(_flat(one)), dict(_flat(other))
    names = [name for name in sides[0] | sides[1] if sides[0].get(name) != sides[1].get(name)]
    first, second = (
        ", ".join(f"{name} {side[name]}" if name in side else f"no {name}" for name in names)
        for side in sides
    )
    return first, second


def _flat(made_on: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in made_on.items():
        yield from _flat(value) if isinstance(value, Mapping) else [(name, value)]


def latency_ms(row: Row) -> float | None:
    """The median round, or None without rounds."""
    rounds = row.get("rounds_ms")
    return median(rounds) if rounds else None


def mean_ssim(row: Row) -> float | None:
    """The mean SSIM over the prompts, or None if it was not measured."""
    ssim = row.get("ssim_cost")
    return fmean(ssim.values()) if ssim else None
