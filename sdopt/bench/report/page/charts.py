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
        xaxis={"title": "time of one image, ms (logarithmic)", "type": "log"},
        yaxis={"title": "SSIM to the ground truth", "tickformat": ".4f"},
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
    span = _range([point.ms for point in quality.points], logarithmic=True)
    figure.update_xaxes(range=span, **_log_ticks(span))
    return figure


def _front_line(best: Sequence[Point]) -> go.Scatter:
    return go.Scatter(
        x=[point.ms for point in best],
        y=[point.quality for point in best],
        text=[label(point.level) for point in best],
        name="Pareto front",
        mode="lines+markers+text",
        # The last name is to the left, or it would run out of a phone's chart.
        textposition=["bottom right"] * (len(best) - 1) + ["top left"],
        textfont={"color": TEXT, "size": 13},
        line={"shape": "hv", "width": 2, "color": BLUE, "dash": "dot"},
        marker={"symbol": "diamond", "size": 12, "color": BLUE},
        hovertemplate="%{text}<br>%{x:.1f} ms<br>SSIM %{y:.4f}<extra></extra>",
        cliponaxis=False,
    )


def stages(facts: Facts) -> go.Figure:
    """Stacked bars, a level each."""
    rows, names = facts.run.rows, stage_names(facts)
    figure = _bars("time of one image, ms", len(rows), barmode="stack")
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
    figure = _bars("memory of one image, MiB", len(rows) * 1.7, barmode="group")
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
        times = _times(facts, level)
        if len(times) < 2:
            continue
        noise = LATENCY_RULE.prior(facts.run.device, facts.run.levels[level])
        changes = change_points([ms for _, ms, _ in times], noise) if noise else []
        found[level] = (_history(facts, level, times, changes), changes)
    return found


def _times(facts: Facts, level: str) -> list[tuple[str, float, bool]]:
    """Name, ms and whether it moved the baseline, of each run with that level; this one is last."""
    runs = [run for run in (*facts.past, facts.run.stored) if level in run.metrics]
    return [(run.path.stem, run.metrics[level][LATENCY.name], run.accepted) for run in runs]


def history_names(facts: Facts, level: str) -> list[str]:
    """The runs of a level's chart, by the index that a change has."""
    return [name for name, _, _ in _times(facts, level)]


def _history(
    facts: Facts, level: str, times: Sequence[tuple[str, float, bool]], changes: Sequence[Change]
) -> go.Figure:
    figure = _figure(
        height=400,
        xaxis={"title": "stored runs, oldest first", "type": "category", "tickangle": -40},
        yaxis={"title": "median time of one image, ms", "rangemode": "normal"},
    )
    names = [f"{number} {label(name, 18)}" for number, (name, _, _) in enumerate(times, start=1)]
    _limits(figure, facts, level, names)
    values = [ms for _, ms, _ in times]
    last = len(times) - 1
    symbols = [
        "star" if at == last else "square" if accepted else "circle"
        for at, (_, _, accepted) in enumerate(times)
    ]
    figure.add_trace(
        go.Scatter(
            x=names,
            y=values,
            name="a run (square: accepted as baseline; star: this run)",
            mode="lines+markers",
            line={"color": BLUE, "width": 2},
            marker={"symbol": symbols, "size": [16 if at == last else 10 for at in range(last + 1)]},
            hovertemplate="%{x}<br>%{y:.2f} ms<extra></extra>",
        )
    )
    _levels(figure, names, values, changes)
    return figure


def _limits(figure: go.Figure, facts: Facts, level: str, names: Sequence[str]) -> None:
    """The band that the gate calls no change, by the gate's own rule."""
    stored = facts.known.series.get(level, {}).get(LATENCY.name, ())
    prior = LATENCY_RULE.prior(facts.run.device, facts.run.levels[level])
    if not stored or prior is None:
        return
    ms = facts.run.rows[level][LATENCY.name]
    judged = judge_by_history(ms, stored, prior, facts.known.comparisons)
    figure.add_trace(
        go.Scatter(
            x=[*names, *reversed(names)],
            y=[judged.limit] * len(names) + [judged.lower_limit] * len(names),
            name="no change, by the gate's rule for this run",
            fill="toself",
            fillcolor=BAND,
            line={"width": 0, "color": BAND},
            hoverinfo="skip",
            mode="lines",
        )
    )


def _levels(
    figure: go.Figure, names: Sequence[str], values: Sequence[float], changes: Sequence[Change]
) -> None:
    """The medians between change points, and a dashed line at each change."""
    if not changes:
        return
    starts = [0, *(change.index for change in changes), len(values)]
    centers = [changes[0].before, *(change.after for change in changes)]
    x: list[str | None] = []
    y: list[float | None] = []
    for start, end, center in zip(starts, starts[1:], centers, strict=False):
        x += [names[start], names[end - 1], None]
        y += [center, center, None]
    figure.add_trace(
        go.Scatter(
            x=x,
            y=y,
            name="median between change points",
            mode="lines",
            line={"color": ORANGE, "width": 4, "dash": "dash"},
            hoverinfo="skip",
        )
    )
    for change in changes:
        figure.add_vline(x=change.index - 0.5, line={"color": ORANGE, "width": 1, "dash": "dot"})
        figure.add_annotation(
            x=change.index - 0.5,
            y=1,
            yref="paper",
            yanchor="bottom",
            text=f"{change.percent:+.1f} %",
            showarrow=False,
            font={"color": ORANGE, "size": 13},
        )


def _bars(title: str, rows: float, *, barmode: str) -> go.Figure:
    figure = _figure(
        height=HEAD_PX + ROW_PX * max(2.0, rows),
        xaxis={"title": title, "rangemode": "tozero"},
        yaxis={"autorange": "reversed", "type": "category", "ticksuffix": " "},
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
            "pattern": {"shape": pattern, "fgcolor": BACKGROUND, "size": 6, "solidity": 0.25},
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


def _range(values: Sequence[float], *, logarithmic: bool) -> list[float]:
    """Of an axis, with room at both ends for the names."""
    low, high = min(values), max(values)
    if logarithmic:
        low, high = math.log10(low), math.log10(high)
    room = 0.12 * (high - low) or 0.2
    return [low - room, high + room]


def _log_ticks(span: Sequence[float]) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 times each power of ten: plotly's own are bare digits."""
    low, high = span
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    kept = [tick for tick in ticks if low <= math.log10(tick) <= high]
    return {"tickvals": kept, "ticktext": [f"{tick:g}" for tick in kept]}
