"""Reads a study's own JSON file again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdopt.util.files import damaged, read_json


def read_stored(file: Path, schema: str, module: str) -> dict[str, Any]:
    """What that module wrote. Raises BrokenFileError for another program's file."""
    found: dict[str, Any] = read_json(file)
    if found.get("schema") != schema:
        raise damaged(file, f"holds no {schema}, which `python -m {module}` writes")
    return found
