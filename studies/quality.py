"""Pages and charts of evaluations: `python -m studies.quality quality/summary.json --page PAGE`."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdopt.bench.evaluation.parts import PARTS, read_rows
from sdopt.bench.evaluation.pixels import from_png
from sdopt.bench.evaluation.places import Place, place_of
from sdopt.bench.evaluation.summary import MARKDOWN, markdown, table
from sdopt.bench.report.results import write_table
from sdopt.bench.stored import schema
from sdopt.bench.stored.judging import read_judging_runs
from sdopt.errors import BrokenFileError, SdoptError
from sdopt.util.files import read_json, write_whole
from studies.plots import latency_bars

Summary = Mapping[str, Any]
SHOWN = ("ssim_cost", "ssim_ground_truth_difference")
"""What the chart has time against, one panel each, where it was measured."""
WORDS = {
    "ssim_cost": "SSIM to the reference's image",
    "ssim_ground_truth_difference": "SSIM to the ground truth, less the reference's",
}
Point = tuple[str, float, Mapping[str, float]]
"""Level, ms an image, and its score with the bounds of its interval."""


def read_summary(path: Path) -> dict[str, Any]:
    """What `sdopt evaluate` wrote. Raises BrokenFileError for anything else."""
    data = read_json(path)
    schema.check(path, data, "evaluation")
    return data


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


def draw_costs(summary: Summary, times: Mapping[str, float], path: Path) -> None:
    """Time against cost with 95 % intervals: faster is to the left, nearer to the reference up."""
    panels = [(score, found) for score in SHOWN if (found := points(summary, score, times))]
    if not panels:
        raise SdoptError("no level has both a time and a score; give --times HISTORY_FOLDER")
    figure = new_figure(width=9, height=4 * len(panels))
    every = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, (score, found) in zip(every, panels, strict=True):
        for number, (level, ms, value) in enumerate(sorted(found, key=lambda point: point[1])):
            below, above = value["mean"] - value["low"], value["high"] - value["mean"]
            axes.errorbar(ms, value["mean"], [[below], [above]], fmt="o", capsize=4, color="C0")
            is_slow = number >= len(found) / 2  # a label to the right of it would be cut off
            axes.annotate(
                level,
                (ms, value["mean"]),
                xytext=(-8 if is_slow else 8, 10 if number % 2 else -14),
                textcoords="offset points",
                horizontalalignment="right" if is_slow else "left",
            )
        axes.set_xscale("log")
        for part in ("major", "minor"):
            getattr(axes.xaxis, f"set_{part}_formatter")("{x:g}")
        axes.margins(x=0.15)
        axes.set_xlabel("ms an image")
        axes.set_ylabel(f"{WORDS[score]}\n({summary['reference']})")
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def draw_histograms(summary: Summary, path: Path) -> None:
    """A panel for each level, of what its prompts are ranked by."""
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
        axes.set_ylabel("prompts")
    save_figure(figure, path)


def noise(place: Place, other: Place) -> dict[str, float]:
    """The largest difference of each score of two evaluations of the same prompts, and of pixels.

    What another number of processes, threads or images in a batch moves. Raises BrokenFileError
    for evaluations that share no part.
    """
    most: dict[str, float] = {}
    levels = [level for level in other.files(PARTS) if level in place.files(PARTS)]
    for level in levels:
        for name in place.files(f"{PARTS}/{level}"):
            pair = [read_rows(one, f"{PARTS}/{level}/{name}") for one in (place, other)]
            for ours, theirs in zip(*pair, strict=True):
                apart = np.abs(np.subtract(from_png(ours.png), from_png(theirs.png), dtype=int))
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


def save_figure(figure: Any, path: Path) -> None:
    """As PNG, whole."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_whole(path, content.getvalue())


def _write(options: argparse.Namespace) -> None:
    """The table into a page, with the charts and the worst prompts beside it."""
    summary = read_summary(options.summary)
    lines = [markdown(summary)[0], "", *table(summary)]
    print("\n".join(lines))
    if not options.page:
        return
    times = times_ms(summary, options.times)
    charts: dict[str, Callable[[Path], None]] = {
        f"{options.name}.png": lambda path: draw_costs(summary, times, path),
        f"{options.name}-histograms.png": lambda path: draw_histograms(summary, path),
    }
    for name, draw in charts.items():
        draw(options.page.parent / name)
        lines += ["", f"![{' '.join(name.removesuffix('.png').split('-'))}]({name})"]
    if options.worst:
        lines += worst_lines(summary, options.worst, options.page.parent, options.name)
    write_table(options.page, lines, options.name)
    print(f"wrote {options.name} into {options.page}, and images beside it")


def worst_lines(summary: Summary, sheets: Path, folder: Path, name: str) -> list[str]:
    """Each level's ten worst prompts, and the sheet of their images, copied into the folder."""
    lines: list[str] = []
    for level, told in summary["levels"].items():
        sheet = sheets / f"{level}.png"
        if level == summary["reference"] or not sheet.is_file():
            continue
        file = f"{name}-worst-{level}.png"
        write_whole(folder / file, sheet.read_bytes())
        rows = [f"{one['value']:.4f} {one['prompt']}" for one in told["worst"]]
        lines += ["", f"Worst by `{level}` ({told['ranked_by']}):", ""]
        lines += [f"{number}. {row}" for number, row in enumerate(rows, start=1)]
        lines += ["", f"![the reference's image, that of {level}, the ground truth]({file})"]
    return lines


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
    return 0


if __name__ == "__main__":
    sys.exit(main())
