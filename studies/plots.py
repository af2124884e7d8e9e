"""Charts of stored runs: `python -m studies.plots HISTORY_FOLDER --out docs/evidence`."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from sdopt.bench.report.published import published_seconds
from sdopt.bench.report.results import Run
from sdopt.bench.stored.judging import read_judging_runs
from sdopt.errors import SdoptError
from sdopt.levels import LEVELS
from sdopt.util.files import write_whole
from studies.peers.stored import read_recipes
from studies.rows import Row, latency_ms, mean_ssim

LATENCY, QUALITY = "latency.png", "speed-quality.png"
LABELS_AT = (12, -12, 48, -48)
"""Points above or below: neighbours have their labels at different heights."""
OURS, PEER, THEIRS = "#1f77b4", "#d62728", "#bbbbbb"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One recipe in the chart of speed and quality."""

    name: str
    latency_ms: float
    ssim: float
    ours: bool


def latency_bars(runs: Sequence[Run]) -> list[tuple[str, float, float | None]]:
    """Level, median ms here, published ms or None; in the order of the ladder."""
    there = published_seconds()
    bars = []
    for level in LEVELS:
        here = [run[level]["latency_ms"] for run in runs if level in run]
        if here:
            bars.append((level, median(here), 1e3 * there[level][0] if level in there else None))
    return bars


def quality_points(rows: Mapping[str, Row], costs: Mapping[str, Row] | None = None) -> list[Point]:
    """The rows that have a time and an SSIM; the SSIM is that of `costs` if they are given."""
    points = []
    for name, row in rows.items():
        time_ms = latency_ms(row)
        ssim = mean_ssim(row if costs is None else costs.get(name, {}))
        if time_ms is not None and ssim is not None:
            ours = str(name).startswith("sdopt-")
            points.append(Point(name=name, latency_ms=time_ms, ssim=ssim, ours=ours))
    return points


def draw_latency(bars: Sequence[tuple[str, float, float | None]], path: Path) -> None:
    """Bars of each level here and as published."""
    figure, axes = _figure(width=8, height=0.5 * len(bars) + 1.5)
    places = list(range(len(bars)))
    published = [(place, there) for place, (_, _, there) in zip(places, bars, strict=True) if there]
    axes.barh(
        [place + 0.2 for place, _ in published],
        [there for _, there in published],
        height=0.4,
        color=THEIRS,
        label="A100, published",
    )
    measured = [here for _, here, _ in bars]
    drawn = axes.barh(
        [place - 0.2 for place in places], measured, height=0.4, color=OURS, label="here"
    )
    axes.bar_label(drawn, fmt="%.0f", padding=3)
    axes.set_yticks(places, [level for level, _, _ in bars])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("ms an image, median")
    axes.legend()
    _save(figure, path)


def draw_quality(points: Sequence[Point], path: Path) -> None:
    """Faster is to the left, closer to plain diffusers is up; our levels and the peers by color."""
    figure, axes = _figure(width=10, height=6)
    ordered = sorted(points, key=lambda point: point.latency_ms)
    for number, point in enumerate(ordered):
        color, away = OURS if point.ours else PEER, LABELS_AT[number % len(LABELS_AT)]
        axes.scatter(point.latency_ms, point.ssim, color=color)
        axes.annotate(
            point.name.removeprefix("sdopt-").replace(" (", "\n("),
            (point.latency_ms, point.ssim),
            xytext=(0, away),
            textcoords="offset points",
            ha="center",
            va="bottom" if away > 0 else "top",
            fontsize="small",
            color=color,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5},
        )
    axes.set_xscale("log")
    axes.set_xlabel("ms an image, median (logarithmic)")
    axes.set_ylabel("mean SSIM to plain diffusers, same sampler and steps")
    axes.margins(x=0.1, y=0.5)
    _save(figure, path)


def _figure(*, width: float, height: float) -> tuple[Any, Any]:
    """A figure without a window. Raises SdoptError if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SdoptError(f"charts need matplotlib ({error}): pip install -e '.[docs]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Any, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_whole(path, content.getvalue())


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the charts; 2 for a folder or file that cannot be used, or without matplotlib."""
    parser = argparse.ArgumentParser(prog="python -m studies.plots", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="HISTORY_FOLDER")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/evidence"), help="folder (default: docs/evidence)"
    )
    parser.add_argument("--rows", type=Path, help="rows of the peers, for the chart of quality")
    parser.add_argument("--cost", type=Path, help="rows of another source, for its SSIM")
    options = parser.parse_args(arguments)
    written = []
    try:
        bars = latency_bars([run.metrics for run in read_judging_runs(options.folder)])
        draw_latency(bars, options.out / LATENCY)
        written.append(options.out / LATENCY)
        if options.rows:
            costs = read_recipes(options.cost).rows if options.cost else None
            rows = read_recipes(options.rows).rows
            points = quality_points(rows, costs)
            if not points:
                raise SdoptError(f"{options.rows} has no row with both a time and an SSIM")
            draw_quality(points, options.out / QUALITY)
            written.append(options.out / QUALITY)
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"wrote {path}" for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
