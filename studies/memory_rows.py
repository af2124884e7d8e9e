"""Which rows of `studies.memory_needs` there can be, and which of them a table is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sdopt.errors import SdoptError
from sdopt.levels import LEVELS
from studies.rows import Row, Rows, damaged_rows, read_rows, wrong, wrong_numbers

FIELDS = ("level", "tries", "need_mib")
"""What tells these rows from rows of anything else."""
MADE_ON = ("device", "source", "dtype")
LEVEL = ("decoder", "cfg_cutoff", "feature_cache", "float8")
WORKED = ("held_mib", "peak_reserved_mib", "outside_mib", "ms")


def read_needs(path: Path) -> Rows:
    """The rows of a file. Raises BrokenFileError if it has others, or damaged ones."""
    return checked(read_rows(path, *FIELDS))


def checked(rows: Rows) -> Rows:
    """The rows as they are. Raises BrokenFileError for what cannot be, by its field."""
    for what in _faults(rows):
        raise damaged_rows(rows.path, what)
    return rows


def finished(rows: Rows, levels: Sequence[str]) -> list[Row]:
    """The complete rows, of these levels if any are named.

    Raises SdoptError if there are none, or none of a level that is named.
    """
    done = {name: row for name, row in rows.rows.items() if row["done"]}
    if not done:
        raise SdoptError(f"{rows.path} holds no finished row to make a table of; measure a level")
    if missing := [name for name in levels if name not in done]:
        raise SdoptError(
            f"{rows.path} holds no finished row of {', '.join(missing)}, only of {', '.join(done)}"
        )
    return [row for name, row in done.items() if not levels or name in levels]


def _faults(rows: Rows) -> Iterator[str]:
    """What cannot be, each by its field; only the first one is sure."""
    for name in MADE_ON:
        if not isinstance(rows.made_on.get(name), str):
            yield f"made_on: {wrong(rows.made_on, name, 'no text')}"
    for row in rows.rows.values():
        if row["name"] not in LEVELS:
            yield f"it has a row of {row['name']!r}, which is no level"
        yield from (f"row {row['name']!r}: {what}" for what in _of_row(row))


def _of_row(row: Row) -> Iterator[str]:
    if not isinstance(row.get("done"), bool):
        yield wrong(row, "done", "neither true nor false")
    yield from wrong_numbers(row, ("need_mib", "outside_mib"))
    if not isinstance(row.get("level"), dict):
        yield wrong(row, "level", "no object")
    yield from (f"level: {name} is missing" for name in LEVEL if name not in row["level"])
    if not isinstance(row.get("tries"), list) or not row["tries"]:
        yield wrong(row, "tries", "no list of tries")
    for number, one in enumerate(row["tries"]):
        yield from (f"tries[{number}]: {what}" for what in _of_try(one, first=not number))


def _of_try(one: object, *, first: bool) -> Iterator[str]:
    if not isinstance(one, dict):
        yield "it is no object"
        return
    if not isinstance(one.get("works"), bool) or (first and not one["works"]):
        yield wrong(one, "works", "as it cannot be")
    if "cap_mib" not in one or (one["cap_mib"] is None) is not first:
        yield wrong(one, "cap_mib", "and the first try alone has none")
    yield from wrong_numbers(one, () if first else ("cap_mib",))
    yield from wrong_numbers(one, WORKED if one["works"] else ())
