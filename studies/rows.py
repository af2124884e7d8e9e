"""A JSON file of measured rows that grows row by row, all made on one machine by one stack."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median
from typing import Any

from sdopt.errors import BrokenFileError
from sdopt.util.files import read_json, write_whole

SCHEMA = "sdopt-rows/1"

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
    data = read_json(path)
    if data.get("schema") != SCHEMA:
        raise BrokenFileError(f"{path} is no file of rows: its schema is {data.get('schema')!r}")
    try:
        rows = {row["name"]: row for row in data["rows"]}
        if lacking := [field for field in fields if any(field not in row for row in rows.values())]:
            raise BrokenFileError(
                f"{path} has rows of something else, without {', '.join(lacking)}; give another "
                "file, or measure"
            )
        return Rows(path=path, made_on=dict(data["made_on"]), rows=rows)
    except (KeyError, TypeError) as error:
        raise BrokenFileError(f"{path} is incomplete: {error!r}") from error


def continue_rows(path: Path, made_on: Mapping[str, Any]) -> Rows:
    """The file's rows if they were made on the same, else none: what differs is not mixed."""
    if path.exists():
        found = read_rows(path)
        if found.made_on == dict(made_on):
            return found
    return Rows(path=path, made_on=made_on)


def latency_ms(row: Row) -> float | None:
    """The median round, or None without rounds."""
    rounds = row.get("rounds_ms")
    return median(rounds) if rounds else None


def mean_ssim(row: Row) -> float | None:
    """The mean SSIM over the prompts, or None if it was not measured."""
    ssim = row.get("ssim_cost")
    return fmean(ssim.values()) if ssim else None
