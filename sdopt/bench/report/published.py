"""The figures that the ladder's first levels were published with."""

from __future__ import annotations

import json
from pathlib import Path

PUBLISHED = Path(__file__).with_name("published.json")


def published_seconds() -> dict[str, list[float]]:
    """Seconds an image by level, as published; a level measured twice there has two."""
    seconds: dict[str, list[float]] = {}
    for row in json.loads(PUBLISHED.read_text(encoding="utf-8"))["rows"]:
        seconds.setdefault(row["level"], []).append(float(row["seconds"]))
    return seconds


def published_memory_mib() -> dict[str, float]:
    """MiB by level, as published in GB; the last figure of a level that was measured twice."""
    rows = json.loads(PUBLISHED.read_text(encoding="utf-8"))["rows"]
    return {row["level"]: float(row["memory_gb"]) * 1e9 / 2**20 for row in rows}
