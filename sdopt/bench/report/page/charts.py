"""The charts as plotly figures; names of levels are text in them, never markup.

They are made in the light scheme's colors. `report.js` puts the dark ones in their place.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from sdopt.bench.judge.statistics import judge_by_history
from sdopt.bench.metrics.time import LATENCY, LATENCY_RULE
from sdopt.bench.report.page.changes import Change, change_points
from sdopt.bench.report.page.facts import Facts
from sdopt.bench.report.page.quality import Point, Quality, front
from sdopt.bench.report.page.tables import MEMORY, stage_names
from sdopt.bench.stored.history import PARTIAL, StoredRun
from sdopt.util.text import shown

BLUE, ORANGE, GREEN, VIOLET = "#0b57d0", "#b3560b", "#1a7f64", "#7c4dbe"
TEXT, MUTED, LINE, BAND = "#1b1f24", "#57606a", "#d8dee4", "#dbe7fb"
BACKGROUND = "#fdfdfe"
DARK = {
    BLUE: "#6ea8fe",
    ORANGE: "#f0a35e",
    GREEN: "#4fc3a1",
    VIOLET: "#c39bf5",
    TEXT: "#e6edf3",
    MUTED: "#9aa5b1",
    LINE: "#30363d",
    BAND: "#1d3150",
    BACKGROUND: "#12171d",
}
"""What stands for each color in the dark."""
SERIES = ((BLUE, ""), (ORANGE, "/"), (GREEN, "."), (VIOLET, "x"))
"""Color and pattern of a series: a reader needs only one of them."""
MOST_LABEL = 28
ROW_PX, HEAD_PX = 30, 110
MOST_TICKS = 16


def label(text: str, most: int = MOST_LABEL) -> str:
    """A name for plotly, which reads a little HTML in every text."""
    return html.escape(shown(text, most))


def pareto(quality: Quality) -> go.Figure:
    """Each level's time and quality; the front as a stepped line with its names."""
    best = front(quality.points)
    names = {point.level for point in best}
    others = [point for point in quality.points if point.level not in names]
    figure = _figure(
        height=440,
        xaxis={"title": _title("ms an image, log scale"), "type": "log"},
        yaxis={"title": _title("SSIM to the ground truth"), "tickformat": ".3f"},
    )
    figure.add_trace(
        go.Scatter(
            x=[point.ms for point in others],
            y=[point.quality for point in others],
            text=[label(point.level) for point in others],
            name="another level is faster and no worse",
            mode="markers",
            marker={"symbol": "circle-open", "size": 10, "color": MUTED, "line": {"width": 2}},
            hovertemplate="%{text}<br>%{x:.1f} ms<br>SSIM %{y:.4f}<extra></extra>",
        )
    )
    figure.add_trace(_front_line(best))
    span = _range([math.log10(point.ms) for point in quality.points])
    figure.update_xaxes(range=span, **_log_ticks(span))
    figure.update_yaxes(range=_range([point.quality for point in quality.points]))
    return figure


def _front_line(best: Sequence[Point]) -> go.Scatter:
    return go.Scatter(
        x=[point.ms for point in best],
        y=[point.quality for point in best],
        text=[label(point.level) for point in best],
        name="Pareto front",
        mode="lines+markers+text",
        # The best one's is above: the others are to its right, and the line below it.
        textposition=["bottom center"] * (len(best) - 1) + ["top center"],
        textfont={"color": TEXT, "size": 13},
        line={"shape": "hv", "width": 2, "color": BLUE, "dash": "dot"},
        marker={"symbol": "diamond", "size": 12, "color": BLUE},
        hovertemplate="%{text}<br>%{x:.1f} ms<br>SSIM %{y:.4f}<extra></extra>",
        cliponaxis=False,
    )


def stages(facts: Facts) -> go.Figure:
    """Stacked bars, a level each."""
    rows, names = facts.run.rows, stage_names(facts)
    figure = _bars("ms of one image", len(rows), barmode="stack")
    for name, (color, pattern) in zip(names, _series(len(names)), strict=True):
        times = [row.get("stage_ms", {}).get(name) for row in rows.values()]
        figure.add_trace(_bar(rows, times, label(name), color, pattern, "ms"))
    return figure


def memory(facts: Facts, published_mib: Mapping[str, float]) -> go.Figure:
    """Allocated, reserved and used as bars beside each other, with what was published."""
    rows = {
        level: row
        for level, row in facts.run.rows.items()
        if any(row.get(name) is not None for name in MEMORY)
    }
    figure = _bars("MiB of one image", len(rows) * 1.7, barmode="group")
    for (name, words), (color, pattern) in zip(MEMORY.items(), SERIES, strict=False):
        values = [row.get(name) for row in rows.values()]
        figure.add_trace(_bar(rows, values, words, color, pattern, "MiB"))
    there = {level: published_mib[level] for level in rows if level in published_mib}
    figure.add_trace(
        go.Scatter(
            x=list(there.values()),
            y=[label(level) for level in there],
            name="A100, published",
            mode="markers",
            marker={"symbol": "diamond-open", "size": 11, "color": TEXT, "line": {"width": 2}},
            hovertemplate="%{y}: %{x:.0f} MiB published<extra></extra>",
        )
    )
    return figure


def histories(facts: Facts) -> dict[str, tuple[go.Figure, list[Change]]]:
    """For each level of the run that has a past: its times with their change points."""
    found = {}
    for level in facts.run.rows:
        runs = facts.runs_with(level)
        if len(runs) < 2:
            continue
        prior = LATENCY_RULE.prior(facts.run.device, facts.run.levels[level])
        times = [run.metrics[level][LATENCY.name] for run in runs]
        changes = change_points(times, prior) if prior else []
        found[level] = (_history(facts, level, runs, changes), changes)
    return found


def _history(
    facts: Facts, level: str, runs: Sequence[StoredRun], changes: Sequence[Change]
) -> go.Figure:
    times = [run.metrics[level][LATENCY.name] for run in runs]
    last = len(runs) - 1
    figure = _figure(
        height=400,
        xaxis={
            "title": _title("stored runs, oldest first"),
            "tickangle": -40,
            "range": [-0.5, last + 0.5],
            **_run_ticks([run.path.stem.removesuffix(PARTIAL) for run in runs]),
        },
        yaxis={"title": _title("median ms of an image"), "range": _range(times)},
    )
    _limits(figure, facts, level, last)
    figure.add_trace(
        go.Scatter(
            x=list(range(last + 1)),
            y=times,
            text=[label(run.path.stem) for run in runs],
            name="runs",
            mode="lines+markers",
            line={"color": BLUE, "width": 2},
            marker={
                "symbol": ["square" if run.accepted else "circle" for run in runs[:-1]] + ["star"],
                "size": [10] * last + [17],
                "opacity": 1,
            },
            hovertemplate="%{text}<br>%{y:.2f} ms<extra></extra>",
            cliponaxis=False,
        )
    )
    _levels(figure, times, changes)
    return figure


def _run_ticks(names: Sequence[str]) -> dict[str, Any]:
    """So many names as there is room for, the newest among them."""
    step = math.ceil(len(names) / MOST_TICKS)
    kept = list(range(len(names) - 1, -1, -step))[::-1]
    return {"tickvals": kept, "ticktext": [label(names[at], 16) for at in kept]}


def _limits(figure: go.Figure, facts: Facts, level: str, last: int) -> None:
    """The band that the gate calls no change, by the gate's own rule."""
    stored = facts.known.series.get(level, {}).get(LATENCY.name, ())
    prior = LATENCY_RULE.prior(facts.run.device, facts.run.levels[level])
    if not stored or prior is None:
        return
    ms = facts.run.rows[level][LATENCY.name]
    judged = judge_by_history(ms, stored, prior, facts.known.comparisons)
    low, high, begin, end = judged.lower_limit, judged.limit, -0.5, last + 0.5
    figure.add_trace(
        go.Scatter(
            x=[begin, end, end, begin],
            y=[low, low, high, high],
            name="no change, for the gate",
            fill="toself",
            fillcolor=BAND,
            line={"width": 0, "color": BAND},
            hoverinfo="skip",
            mode="lines",
        )
    )


def _levels(figure: go.Figure, times: Sequence[float], changes: Sequence[Change]) -> None:
    """The medians between change points, and a dotted line at each change."""
    if not changes:
        return
    starts = [0, *(change.index for change in changes), len(times)]
    centers = [changes[0].before, *(change.after for change in changes)]
    x: list[float | None] = []
    y: list[float | None] = []
    for start, end, center in zip(starts, starts[1:], centers, strict=False):
        x += [start - 0.5, end - 0.5, None]
        y += [center, center, None]
    figure.add_trace(
        go.Scatter(
            x=x,
            y=y,
            name="median between changes",
            mode="lines",
            line={"color": ORANGE, "width": 3, "dash": "dash"},
            hoverinfo="skip",
        )
    )
    for change in changes:
        figure.add_vline(x=change.index - 0.5, line={"color": ORANGE, "width": 1, "dash": "dot"})
        figure.add_annotation(
            x=change.index - 0.5,
            y=1,
            yref="paper",
            xanchor="left",
            yanchor="top",
            text=f"{change.percent:+.1f} %",
            showarrow=False,
            font={"color": ORANGE, "size": 13},
        )


def _bars(title: str, rows: float, *, barmode: str) -> go.Figure:
    figure = _figure(
        height=HEAD_PX + ROW_PX * max(2.0, rows),
        xaxis={"title": _title(title), "rangemode": "tozero"},
        yaxis={
            "autorange": "reversed",
            "type": "category",
            "ticksuffix": " ",
            "showgrid": False,
        },
    )
    figure.update_layout(barmode=barmode, bargap=0.25)
    return figure


def _bar(
    rows: Mapping[str, Any],
    values: Sequence[float | None],
    name: str,
    color: str,
    pattern: str,
    unit: str,
) -> go.Bar:
    return go.Bar(
        x=values,
        y=[label(level) for level in rows],
        orientation="h",
        name=name,
        marker={
            "color": color,
            "pattern": {
                "shape": pattern,
                "fillmode": "overlay",
                "fgcolor": BACKGROUND,
                "size": 7,
                "solidity": 0.18,
            },
            "line": {"width": 1, "color": BACKGROUND},
        },
        hovertemplate=f"%{{y}}: {name} %{{x:.1f}} {unit}<extra></extra>",
    )


def _series(count: int) -> list[tuple[str, str]]:
    return [SERIES[at % len(SERIES)] for at in range(count)]


def _figure(*, height: float, xaxis: dict[str, Any], yaxis: dict[str, Any]) -> go.Figure:
    """An empty figure: no template, no drag, grid lines that do not shout."""
    axis = {
        "gridcolor": LINE,
        "linecolor": MUTED,
        "zeroline": False,
        "automargin": True,
        "fixedrange": True,
        "ticks": "outside",
        "tickcolor": LINE,
    }
    return go.Figure(
        layout={
            "template": go.layout.Template(),
            "height": height,
            "margin": {"l": 8, "r": 16, "t": 56, "b": 8},
            "paper_bgcolor": BACKGROUND,
            "plot_bgcolor": BACKGROUND,
            "font": {"color": TEXT, "size": 13, "family": "system-ui, sans-serif"},
            "hoverlabel": {"bgcolor": BACKGROUND, "bordercolor": MUTED, "font": {"color": TEXT}},
            "dragmode": False,
            "legend": {
                "orientation": "h",
                "yanchor": "bottom",
                "y": 1.02,
                "x": 0,
                "xanchor": "left",
                "traceorder": "normal",
            },
            "xaxis": {**axis, **xaxis},
            "yaxis": {**axis, **yaxis},
        }
    )


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "standoff": 14, "font": {"size": 13}}


def _range(values: Sequence[float]) -> list[float]:
    """Of an axis, with room at both ends for names and markers."""
    low, high = min(values), max(values)
    room = 0.14 * (high - low) or 0.05 * abs(high) or 1.0
    return [low - room, high + room]


def _log_ticks(span: Sequence[float]) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 times each power of ten: plotly's own are bare digits."""
    low, high = span
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    kept = [tick for tick in ticks if low <= math.log10(tick) <= high]
    return {"tickvals": kept, "ticktext": [f"{tick:g}" for tick in kept]}
