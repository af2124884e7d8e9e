"""Speed against quality: a measure that all levels share, and which of them nobody beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdopt.bench.metrics.images import SSIM_TRUTH
from sdopt.bench.report.page.facts import Facts
from sdopt.bench.stored.baselines import limits_path, read_limits

MINIATURE = "embedded"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A level: less `ms` is better, more `quality` is."""

    level: str
    ms: float
    quality: float


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Points, and in words what their quality is; without points, why there are none."""

    points: Sequence[Point]
    what: str


def quality_of(facts: Facts) -> Quality:
    """By this run's likeness to the ground truth; else by what the miniature's was.

    The likeness to a reference will not do: each level has another one.
    """
    rows, name = facts.run.rows, SSIM_TRUTH.name
    own = {level: row[name] for level, row in rows.items() if row.get(name) is not None}
    if own:
        return Quality(points=_points(facts, own), what="SSIM to the ground truth, mean of prompts")
    path = limits_path(facts.root, MINIATURE)
    borrowed = _stored(path) if path.exists() else {}
    if points := _points(facts, borrowed):
        what = (
            "SSIM to the ground truth of the miniature with the same levels (this source has no "
            "ground truth)"
        )
        return Quality(points=points, what=what)
    return Quality(points=(), what=f"This run has no ground truth, and there is no {path}.")


def _stored(path: Path) -> dict[str, float]:
    kind = SSIM_TRUTH.rule.kind  # type: ignore[union-attr]
    levels = read_limits(path)["levels"]
    return {
        name: float(rows[kind]["measured"])
        for name, rows in levels.items()
        if "measured" in rows.get(kind, {})
    }


def _points(facts: Facts, quality: dict[str, float]) -> list[Point]:
    return [
        Point(level=level, ms=row["latency_ms"], quality=quality[level])
        for level, row in facts.run.rows.items()
        if level in quality
    ]


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front, fastest first: each point that none is faster than and at least as good.

    Of equal points the first counts.
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda one: (one.ms, -one.quality)):
        if not kept or point.quality > kept[-1].quality:
            kept.append(point)
    return kept
