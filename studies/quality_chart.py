"""Time against cost of every level, as one chart whose names cover nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdopt.errors import SdoptError
from studies.point_names import CAP_PT, MARKER_PT, Point, name_points
from studies.quality import (
    SHOWN,
    WORDS,
    apart_of,
    keep_layout,
    new_figure,
    points,
    times_ms,
)
from studies.quality_sheets import Summary

MARKERS = "osD^v"


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
    keep_layout(figure)
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
