"""Names of a chart's points, where they cover nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Point = tuple[str, float, Mapping[str, float]]
"""Level, ms an image, and its score with the bounds of its interval."""
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
    whole, chosen = 0.0, {}
    boxes: list[Any] = []
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
