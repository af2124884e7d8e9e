"""Pages and charts of evaluations: `python -m studies.quality quality/summary.json --page PAGE`."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdopt.bench.evaluation.parts import PARTS, of_image, read_rows
from sdopt.bench.evaluation.pixels import from_png
from sdopt.bench.evaluation.places import Place, place_of
from sdopt.bench.evaluation.summary import MARKDOWN, markdown, table
from sdopt.bench.report.results import filled, read_page
from sdopt.bench.stored.judging import read_judging_runs
from sdopt.bench.stored.summaries import read_summary
from sdopt.errors import BrokenFileError, SdoptError
from sdopt.util.files import cause, write_whole
from studies.plots import latency_bars
from studies.point_names import CAP_PT, MARKER_PT, Point, name_points
from studies.quality_sheets import Summary, check_levels, check_sheets, read_sheet

SHOWN = ("ssim_cost", "ssim_ground_truth_difference")
"""What the chart has time against, one panel each, where it was measured."""
WORDS = {
    "ssim_cost": "SSIM to the reference's image",
    "ssim_ground_truth_difference": "SSIM to the ground truth, less the reference's",
}
LEAST_COUNT = 0.5
"""Where the axis of counts begins: a bar of one prompt is seen."""


def times_ms(summary: Summary, history: Path | None) -> dict[str, float]:
    """Milliseconds an image by level: of a history's latency, or of the evaluation's own rates."""
    if history is not None:
        runs = [run.metrics for run in read_judging_runs(history)]
        return {level: ms for level, ms, _ in latency_bars(runs)}
    times = {}
    for level, told in summary["levels"].items():
        rate = told["rate"]
        steady = rate.get("images_per_s") or rate.get("images_per_s_of_pipelines")
        if steady:
            times[level] = 1e3 * rate["processes"] / steady
    return times


def points(summary: Summary, score: str, times: Mapping[str, float]) -> list[Point]:
    """The levels that have a time and the score; a cost only where it is comparable."""
    return [
        (level, times[level], told["scores"][score])
        for level, told in summary["levels"].items()
        if level in times
        and score in told["scores"]
        and (told["comparable"] or not score.endswith("_cost"))
    ]


def draw_costs(summary: Summary, times: Mapping[str, float]) -> bytes:
    """Time against cost with 95 % intervals: faster is to the left, nearer to the reference up."""
    panels = [(score, found) for score in SHOWN if (found := points(summary, score, times))]
    if not panels:
        raise SdoptError("no level has both a time and a score; give --times HISTORY_FOLDER")
    figure = new_figure(width=9, height=4 * len(panels))
    every = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, (score, found) in zip(every, panels, strict=True):
        axes.errorbar(
            [ms for _, ms, _ in found],
            [value["mean"] for _, _, value in found],
            list(zip(*(apart_of(value) for _, _, value in found), strict=True)),
            fmt="o",
            markersize=MARKER_PT,
            capsize=CAP_PT,
        )
        axes.set_xscale("log")
        for part in ("major", "minor"):
            getattr(axes.xaxis, f"set_{part}_formatter")("{x:g}")
        axes.margins(x=0.15, y=0.15)
        axes.set_xlabel("ms an image")
        axes.set_ylabel(f"{WORDS[score]}\n({summary['reference']})")
        axes.grid(alpha=0.3)
    keep_layout(figure)
    for axes, (_, found) in zip(every, panels, strict=True):
        name_points(axes, found)
    return as_png(figure)


def apart_of(value: Mapping[str, float]) -> tuple[float, float]:
    """How far the bounds are below and above the mean; rounding may put it a hair outside."""
    return max(0.0, value["mean"] - value["low"]), max(0.0, value["high"] - value["mean"])


def draw_histograms(summary: Summary) -> bytes:
    """A panel for each level, of what its prompts are ranked by.

    The worst cases are bars of one prompt or two beside hundreds: counts are on a log axis.
    """
    shown = {
        level: told["scores"][told["ranked_by"]]["histogram"]
        for level, told in summary["levels"].items()
        if level != summary["reference"] and told["ranked_by"] in told["scores"]
    }
    if not shown:
        raise SdoptError("the summary has no level with scores")
    figure = new_figure(width=8, height=1.8 * len(shown))
    every = figure.subplots(len(shown), squeeze=False)[:, 0]
    for axes, (level, histogram) in zip(every, shown.items(), strict=True):
        axes.stairs(histogram["counts"], histogram["edges"], fill=True)
        axes.set_title(f"{level}: {summary['levels'][level]['ranked_by']}", fontsize=9)
        axes.set_yscale("log")
        axes.set_ylim(bottom=LEAST_COUNT)
        is_low = max(histogram["counts"], default=0) < 10  # there is one power of ten, or two
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(_whole if is_low else "")
        axes.set_ylabel("prompts (log)")
    return as_png(figure)


def _whole(count: float, _: int) -> str:
    return f"{count:.0f}" if count >= 1 else ""


def noise(place: Place, other: Place) -> dict[str, float]:
    """The largest difference of each score of two evaluations of the same prompts, and of pixels.

    What another number of processes, threads or images in a batch moves. Raises BrokenFileError
    for evaluations that share no part.
    """
    most: dict[str, float] = {}
    levels = [level for level in other.files(PARTS) if level in place.files(PARTS)]
    for level in levels:
        for name in place.files(f"{PARTS}/{level}"):
            file = f"{PARTS}/{level}/{name}"
            pair = [read_rows(one, file) for one in (place, other)]
            for ours, theirs in zip(*pair, strict=True):
                with of_image(place, file, ours.index):
                    image = from_png(ours.png)
                with of_image(other, file, theirs.index):
                    apart = np.abs(np.subtract(image, from_png(theirs.png), dtype=int))
                found = {"pixels": float(apart.max())}
                for score, value in ours.scores.items():
                    found[score] = abs(value - theirs.scores[score])
                for score, value in found.items():
                    most[score] = max(most.get(score, 0.0), value)
    if not most:
        raise BrokenFileError(f"{place.name} and {other.name} share no part")
    return most


def new_figure(*, width: float, height: float) -> Any:
    """A figure without a window. Raises SdoptError if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SdoptError(f"charts need matplotlib ({error}): pip install -e '.[docs]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def keep_layout(figure: Any) -> None:
    """Where its parts are now, they stay, whatever is added to them."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def as_png(figure: Any) -> bytes:
    """Its file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def write_all(page: Path, text: str, images: Mapping[str, bytes]) -> None:
    """The images beside a page, and then the page, which names them: all of it is made before.

    Raises SdoptError for what cannot be written.
    """
    contents = {page.parent / name: content for name, content in images.items()}
    try:
        for path, content in {**contents, page: text.encode()}.items():
            write_whole(path, content)
    except OSError as error:
        raise SdoptError(f"{error.filename} cannot be written: {cause(error)}") from error


def _write(options: argparse.Namespace) -> None:
    """The table into a page, with the charts and the worst prompts beside it."""
    summary = read_summary(options.summary)
    check_levels(options.summary, summary)
    lines = [markdown(summary)[0], "", *table(summary)]
    told = "\n".join(lines)
    if options.page:
        times = times_ms(summary, options.times)
        images = {
            f"{options.name}.png": draw_costs(summary, times),
            f"{options.name}-histograms.png": draw_histograms(summary),
        }
        for name in images:
            lines += ["", f"![{' '.join(name.removesuffix('.png').split('-'))}]({name})"]
        if options.worst:
            check_sheets(options.summary, summary, options.worst)
            more, sheets = worst_lines(summary, options.worst, options.name)
            lines, images = [*lines, *more], {**images, **sheets}
        text = filled(options.page, read_page(options.page), lines, options.name)
        write_all(options.page, text, images)
    print(told)
    if options.page:
        print(f"wrote {options.name} into {options.page}, and images beside it")


def worst_lines(summary: Summary, sheets: Path, name: str) -> tuple[list[str], dict[str, bytes]]:
    """Each level's ten worst prompts, and the sheet of their images by the name of its file.

    Raises BrokenFileError for a sheet that is missing.
    """
    lines, images = [], {}
    for level, told in summary["levels"].items():
        if level == summary["reference"] or not told["worst"]:
            continue
        file = f"{name}-worst-{level}.png"
        read_sheet(sheets / f"{level}.png", len(told["worst"]))
        images[file] = (sheets / f"{level}.png").read_bytes()
        rows = [f"{one['value']:.4f} {one['prompt']}" for one in told["worst"]]
        lines += ["", f"Worst by `{level}` ({told['ranked_by']}):", ""]
        lines += [f"{number}. {row}" for number, row in enumerate(rows, start=1)]
        lines += ["", f"![the reference's image, that of {level}, the ground truth]({file})"]
    return lines, images


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, maybe write it and the charts; 2 for a file that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m studies.quality", description=__doc__)
    add = parser.add_argument
    add("summary", type=Path, help=f"summary.json, beside {MARKDOWN}; with --noise a folder")
    add("--page", type=Path, help="page to write the table into; charts are put beside it")
    add("--name", default="quality", help="of the table's marks and the charts (quality)")
    add("--times", type=Path, metavar="HISTORY_FOLDER", help="latency (default: this run's rates)")
    add("--worst", type=Path, metavar="DIR", help="sheets of the worst prompts, to be shown too")
    add("--noise", metavar="OTHER", help="folder of the same prompts: how far the two are apart")
    options = parser.parse_args(arguments)
    try:
        if options.noise:
            for score, value in noise(
                place_of(str(options.summary)), place_of(options.noise)
            ).items():
                print(f"{score:32s} {value:.2e}")
        else:
            _write(options)
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {cause(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
