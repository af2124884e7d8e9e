"""Time against cost of every level, as one chart whose names cover nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdopt.errors import SdoptError
from studies.quality import (
    SHOWN,
    WORDS,
    Point,
    Summary,
    apart_of,
    new_figure,
    points,
    times_ms,
)

MARKERS = "osD^v"
MARKER_PT, CAP_PT = 6, 4
"""Side of a marker; half the width of an interval's ends."""
AROUND_PT = 1.5
"""Kept free around each of them."""
NEAR_ANOTHER, OUTSIDE, COVERED = 10, 1000, 100
"""How much worse than the next place: nearer to another point, outside, each pixel covered."""
ORDERS = 100
SIDES = ((0, "center"), (-4, "left"), (4, "right"))
PLACES = (
    ("high", 0, 6, "center"),
    ("low", 0, -6, "center"),
    ("mean", 9, 0, "left"),
    ("mean", -9, 0, "right"),
    *(
        (edge, across, up * direction, side)
        for up in (6, 15, 24, 33)
        for across, side in SIDES
        for edge, direction in (("high", 1), ("low", -1))
    ),
)
"""Edge of the interval, distance from it in points across and up, and the name's side that is
there: from the best place to the last resort."""


def draw_levels(summaries: Mapping[str, Summary], history: Path) -> Any:
    """A figure with 95 % intervals, a colour and a marker for each evaluation by its label."""
    panels = []
    for score in SHOWN:
        series = {
            label: points(summary, score, times_ms(summary, history))
            for label, summary in summaries.items()
        }
        if any(series.values()):
            panels.append((score, series))
    if not panels:
        raise SdoptError(f"no level has both a time in {history} and a score; name another --times")
    figure = new_figure(width=10, height=5.5 * len(panels))
    every = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, (score, series) in zip(every, panels, strict=True):
        _draw_series(axes, series)
        axes.set_xscale("log")
        for part in ("major", "minor"):
            getattr(axes.xaxis, f"set_{part}_formatter")("{x:g}")
        axes.margins(x=0.12, y=0.12)
        axes.set_xlabel(f"ms an image, {' '.join(history.parts[-2:])}")
        axes.set_ylabel(f"{WORDS[score]} (95 % interval)")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what is occupied stays where it is
    for axes, (_, series) in zip(every, panels, strict=True):
        name_points(axes, [point for values in series.values() for point in values])
    return figure


def _draw_series(axes: Any, series: Mapping[str, Sequence[Point]]) -> None:
    for number, (label, values) in enumerate(series.items()):
        if not values:
            continue
        apart = list(zip(*(apart_of(value) for _, _, value in values), strict=True))
        axes.errorbar(
            [ms for _, ms, _ in values],
            [value["mean"] for _, _, value in values],
            apart,
            fmt=MARKERS[number % len(MARKERS)],
            markersize=MARKER_PT,
            capsize=CAP_PT,
            color=f"C{number}",
            label=label,
        )


def name_points(axes: Any, values: Sequence[Point]) -> None:
    """Each level's name once, near its first point, where no point, interval or other name is.

    Names take their places in turn, in one order after another: the best of all orders is drawn.
    """
    first = {level: (ms, value) for level, ms, value in reversed(values)}
    places = {level: _places(axes, level, *at, values) for level, at in first.items()}
    order, shuffled = sorted(places, key=lambda level: first[level][0]), random.Random(0)
    orders = [order, *(shuffled.sample(order, len(order)) for _ in range(ORDERS))]
    _, chosen = min((_in_turn(places, order) for order in orders), key=lambda one: one[0])
    for level, place in chosen.items():
        _named(axes, level, *first[level], place)


def _places(
    axes: Any, level: str, ms: float, value: Mapping[str, float], values: Sequence[Point]
) -> list[tuple[float, Any, Any]]:
    """How bad each place is, the place, and the box of the name there in pixels: the best first."""
    own = list(occupied(axes, ms, value))
    taken = [box for _, ms, value in values for box in occupied(axes, ms, value)]
    others = [box for box in taken if not any(_is_same(box, one) for one in own)]
    found = []
    for rank, place in enumerate(PLACES):
        name = _named(axes, level, ms, value, place)
        box = name.get_window_extent()
        name.remove()
        bad = rank + COVERED * sum(_common(box, other) for other in taken)
        if min((_apart(box, one) for one in others), default=math.inf) < _apart(box, own[0]):
            bad += NEAR_ANOTHER
        found.append((bad if _within(box, axes.bbox) else bad + OUTSIDE, place, box))
    return sorted(found, key=lambda one: one[0])


def _in_turn(
    places: Mapping[str, Sequence[tuple[float, Any, Any]]], order: Sequence[str]
) -> tuple[float, dict[str, Any]]:
    """How bad it is if each level in turn takes the best place that is left, and their places."""
    whole, boxes, chosen = 0.0, [], {}
    for level in order:
        worse = [
            (bad + COVERED * sum(_common(box, other) for other in boxes), number)
            for number, (bad, _, box) in enumerate(places[level])
        ]
        bad, number = min(worse)
        whole += bad
        chosen[level] = places[level][number][1]
        boxes.append(places[level][number][2])
    return whole, chosen


def occupied(axes: Any, ms: float, value: Mapping[str, float]) -> Iterator[Any]:
    """The boxes of a point's marker and of its interval, in pixels."""
    from matplotlib.transforms import Bbox

    pixels = axes.figure.dpi / 72
    x, mean = axes.transData.transform((ms, value["mean"]))
    low, high = (axes.transData.transform((ms, value[edge]))[1] for edge in ("low", "high"))
    half = (MARKER_PT / 2 + AROUND_PT) * pixels
    yield Bbox.from_extents(x - half, mean - half, x + half, mean + half)
    half, more = (CAP_PT + AROUND_PT) * pixels, AROUND_PT * pixels
    yield Bbox.from_extents(x - half, low - more, x + half, high + more)


def _named(axes: Any, level: str, ms: float, value: Mapping[str, float], place: Any) -> Any:
    edge, across, up, side = place
    return axes.annotate(
        level,
        (ms, value[edge]),
        (across, up),
        textcoords="offset points",
        ha=side,
        va={"high": "bottom", "mean": "center", "low": "top"}[edge],
        fontsize=8,
    )


def _common(one: Any, other: Any) -> float:
    """Pixels that both boxes cover."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(0, width) * max(0, height))


def _apart(one: Any, other: Any) -> float:
    """Pixels between two boxes."""
    width = max(one.x0, other.x0) - min(one.x1, other.x1)
    height = max(one.y0, other.y0) - min(one.y1, other.y1)
    return math.hypot(max(0, width), max(0, height))


def _is_same(one: Any, other: Any) -> bool:
    return bool((one.extents == other.extents).all())


def _within(one: Any, other: Any) -> bool:
    return bool(
        other.x0 <= one.x0 and one.x1 <= other.x1 and other.y0 <= one.y0 and one.y1 <= other.y1
    )
