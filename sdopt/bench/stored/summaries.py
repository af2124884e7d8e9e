"""Reads what `sdopt evaluate` wrote, and no number that is none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdopt.bench.stored import schema
from sdopt.util.files import damaged, read_json

FEWEST = 2
"""Prompts that an interval is of: from one alone, each replicate has the same mean."""
ROUNDING = 1e-9
"""How far a mean may lie outside of its interval: both are sums of the same values."""


def read_summary(path: Path) -> dict[str, Any]:
    """A summary whose numbers can be drawn. Raises BrokenFileError for anything else.

    The names of levels are whatever stands there: another version may have others.
    """
    data = read_json(path)
    schema.check(path, data, "evaluation")
    try:
        what = next(_unsound(data), None)
    except (AttributeError, KeyError, TypeError) as error:  # without jsonschema it gets here
        raise damaged(path, f"is not what an evaluation wrote: {error!r}") from error
    if what:
        raise damaged(path, f"is not what an evaluation wrote: {what}")
    return data


def _unsound(data: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong, and where."""
    yield from _endless("$", data)
    levels = data["levels"]
    if data["reference"] not in levels:
        yield f"$.reference is {data['reference']!r}, expected one of {', '.join(levels)}"
    for name, told in levels.items():
        rate = told["rate"]
        if "processes" not in rate and {"images_per_s", "images_per_s_of_pipelines"} & {*rate}:
            yield f"$.levels.{name}.rate has images a second and no processes"
        for score, value in told["scores"].items():
            yield from _unsound_score(f"$.levels.{name}.scores.{score}", value)


def _endless(place: str, value: Any) -> Iterator[str]:
    """Python writes and reads numbers that JSON has not."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{place} is {value}, expected a finite number"
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _endless(f"{place}.{name}", inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _endless(f"{place}[{number}]", inner)


def _unsound_score(place: str, value: Mapping[str, Any]) -> Iterator[str]:
    low, mean, high = (value[name] for name in ("low", "mean", "high"))
    if not low - ROUNDING <= mean <= high + ROUNDING:
        yield f"{place}.mean is {mean}, expected it between low {low} and high {high}"
    edges, counts = (value["histogram"][name] for name in ("edges", "counts"))
    if len(edges) != len(counts) + bool(counts):
        yield f"{place}.histogram has {len(edges)} edges of {len(counts)} counts"
    if edges != sorted(set(edges)):
        yield f"{place}.histogram.edges do not ascend"
