"""Checks of JSON files against their published schemas, `schemas/*.json` beside this file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sdopt.util.files import damaged

FOLDER = Path(__file__).parent / "schemas"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
MOST_SHOWN = 60
"""Characters of a value: it may be a whole object."""
WORDS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "exclusiveMinimum": "more than {}",
    "exclusiveMaximum": "less than {}",
    "minItems": "at least {} values",
    "minLength": "at least {} characters",
    "pattern": "text like {}",
    "const": "{!r}",
    "enum": "one of {}",
}


def check(path: Path, data: Mapping[str, Any], name: str) -> None:
    """Raise BrokenFileError for a file that is not of the schema of that name.

    The message names the file, the place in it, the value and what was expected. An installation
    without the suite's packages reads without it: `soundness` checks what is computed with.
    """
    if find_spec("jsonschema") is None:
        return
    from jsonschema.exceptions import best_match

    error = best_match(_validator(name).iter_errors(data))
    if error is not None:
        raise damaged(path, f"is not of the schema {name}.json: {_told(error)}")


def load(name: str) -> dict[str, Any]:
    """The schema of that name."""
    schema: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return schema


@cache
def _validator(name: str) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(load(name))


def _told(error: Any) -> str:
    """'$.benchmarks[0].stats.data[2] is -1, expected more than 0'."""
    place, kind, wanted = error.json_path, error.validator, error.validator_value
    if kind in ("required", "additionalProperties", "propertyNames"):
        return f"{place}: {error.message}"
    value = json.dumps(error.instance)
    if len(value) > MOST_SHOWN:
        value = f"{value[: MOST_SHOWN - 3]}..."
    if kind == "type":
        kinds = [wanted] if isinstance(wanted, str) else wanted
        return f"{place} is {value}, expected {' or '.join(kinds)}"
    words = WORDS.get(kind)
    return f"{place} is {value}, expected {words.format(wanted) if words else error.message}"
