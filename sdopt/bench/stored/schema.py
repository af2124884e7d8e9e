"""Checks of JSON files against their published schemas.

`schemas/*.json` beside this file holds them but for the metrics and a level's fields, which are
the code's: `python docs/tables.py` publishes both together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_type_hints

from sdopt.bench.metrics import METRICS
from sdopt.bench.metrics.metric import Metric
from sdopt.levels import Level
from sdopt.util.files import damaged

FOLDER = Path(__file__).parent / "schemas"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
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
    """The schema of that name, with what the code knows of metrics and levels."""
    schema: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    if name == "run":
        measured = schema["$defs"]["measured"]["properties"]
        measured["level_fields"]["properties"] = _level_fields()
        measured.update(_metrics())
    return schema


def published(name: str) -> str:
    """The text of the schema as docs/reference/schemas/ shows it."""
    return f"{json.dumps(load(name), indent=1, ensure_ascii=False)}\n"


def _metrics() -> dict[str, dict[str, Any]]:
    """Each metric by name; latency is made from the rounds, which the schema has."""
    stored = (metric for metric in METRICS.values() if metric.name != "latency_ms")
    return {metric.name: _metric(metric) for metric in sorted(stored, key=lambda one: one.name)}


def _metric(metric: Metric) -> dict[str, Any]:
    bounds = {"minimum": metric.least, "maximum": metric.most}
    told: dict[str, Any] = {"type": "number"}
    told |= {key: int(bound) for key, bound in bounds.items() if math.isfinite(bound)}
    return {**told, "description": metric.unit} if metric.unit else told


def _level_fields() -> dict[str, dict[str, Any]]:
    hints = get_type_hints(Level)
    return {field.name: {"type": _type(hints[field.name])} for field in fields(Level)}


def _type(hint: Any) -> str | list[str]:
    """JSON's name of a type; several of a union, and that of its values of a Literal."""
    if hint in TYPES:
        return TYPES[hint]
    parts = (part if part in TYPES else type(part) for part in get_args(hint))
    names = list(dict.fromkeys(TYPES[part] for part in parts))
    return names[0] if len(names) == 1 else names


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
