"""The page of evaluations: `python -m studies.quality_page docs/samples --page PAGE`.

Of every evaluation of `studies.quality_gpus` whose summary is there: its table, histograms and the
ten worst prompts of each lossy level with their images; and one chart of time against cost for all
levels together. What is not there yet stays as it is on the page.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdopt.bench.evaluation.pixels import from_png
from sdopt.bench.evaluation.summary import GAP_PX, markdown, table
from sdopt.bench.report.results import markdown_table, write_table
from sdopt.errors import BrokenFileError, SdoptError
from sdopt.levels import LEVELS
from sdopt.util.files import write_whole
from studies.quality import (
    SHOWN,
    WORDS,
    Point,
    Summary,
    draw_histograms,
    new_figure,
    points,
    read_summary,
    save_figure,
    times_ms,
)
from studies.quality_runs import LOSSY, kept

HISTORY = Path("baselines/history/nvidia-h200-140gib-700-w/sd15-random")
CHART = "quality-levels"
MOST_KB = 420
"""Of all sheets together."""
FORMS = tuple((side, quality) for side in (96, 80, 64, 48) for quality in (85, 70, 55))
"""Side of an image in a sheet, and JPEG's quality: from the best to the smallest."""
LOSSY_FIELDS = ("decoder", "cfg_cutoff", "feature_cache", "float8", "steps", "scheduler")
MARKERS = "osD^v"
NAME_PLACES = (("low", -12), ("high", 5), ("low", -22), ("high", 15), ("low", -32), ("high", 25))
"""Edge of the interval and distance from it in points: from the best place to the last resort."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """An evaluation whose summary is there."""

    name: str
    summary: Summary

    @property
    def label(self) -> str:
        """'against dpm-20, guidance 7.5'."""
        guidance = self.summary["run"]["guidance_scale"]
        return f"against {self.summary['reference']}, guidance {guidance:g}"

    def lossy(self) -> list[str]:
        """Levels that give away something that their reference has."""
        reference = LEVELS[self.summary["reference"]]
        return [
            name
            for name in self.summary["levels"]
            if any(
                getattr(LEVELS[name], field) != getattr(reference, field) for field in LOSSY_FIELDS
            )
        ]


def found_in(folder: Path) -> list[Found]:
    """In the order of LOSSY. Raises SdoptError if there is none."""
    found = [
        Found(name=one.name, summary=read_summary(kept(folder, one.name)))
        for one in LOSSY
        if kept(folder, one.name).is_file()
    ]
    if not found:
        raise SdoptError(
            f"{folder} holds no {kept(Path(), LOSSY[0].name)} or another of them; run "
            f"python -m studies.quality_gpus lossy --json {folder}/quality-scaling.json first"
        )
    return found


def draw_levels(found: Sequence[Found], history: Path, path: Path) -> None:
    """Time against cost with 95 % intervals, a colour and a marker for each evaluation."""
    panels = []
    for score in SHOWN:
        series = [
            (one, points(one.summary, score, times_ms(one.summary, history))) for one in found
        ]
        if any(values for _, values in series):
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
        _name_points(axes, [point for _, values in series for point in values])
    save_figure(figure, path)


def _draw_series(axes: Any, series: Sequence[tuple[Found, Sequence[Any]]]) -> None:
    for number, (one, values) in enumerate(series):
        if not values:
            continue
        means = [value["mean"] for _, _, value in values]
        apart = [
            [value["mean"] - value["low"] for _, _, value in values],
            [value["high"] - value["mean"] for _, _, value in values],
        ]
        marker = MARKERS[number % len(MARKERS)]
        times = [ms for _, ms, _ in values]
        axes.errorbar(
            times, means, apart, fmt=marker, capsize=4, color=f"C{number}", label=one.label
        )


def _name_points(axes: Any, values: Sequence[Point]) -> None:
    """Each level's name once, above or below its first point, where no other name is."""
    first = {level: (ms, value) for level, ms, value in reversed(values)}
    placed: list[Any] = []
    for level, (ms, value) in sorted(first.items(), key=lambda named: named[1][0]):
        for edge, points_up in NAME_PLACES:
            name = axes.annotate(
                level,
                (ms, value[edge]),
                (0, points_up),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
            box = name.get_window_extent()
            if not any(box.overlaps(other) for other in placed):
                placed.append(box)
                break
            if (edge, points_up) != NAME_PLACES[-1]:
                name.remove()


def tails(one: Found) -> list[str]:
    """Mean and mean of the worst 1 % of each lossy level, in every score that judges it."""
    rows = []
    for level in one.lossy():
        told = one.summary["levels"][level]
        for score in SHOWN:
            value = told["scores"].get(score)
            if value and (told["comparable"] or not score.endswith("_cost")):
                bounds = f"{value['low']:.4f} to {value['high']:.4f}"
                numbers = (f"{value['mean']:.4f}", bounds, f"{value['worst_percent']:.4f}")
                rows.append([f"`{level}`", score, *numbers])
    return markdown_table(
        ["level", "score", "mean", "95 % interval", "mean of the worst 1 %"], rows
    )


def sheet_of(content: bytes, prompts: int) -> NDArray[np.uint8]:
    """A sheet of `sdopt evaluate` on its side: a column a prompt, as pages are wide.

    Raises BrokenFileError for another number of rows.
    """
    image = from_png(content)
    side, rest = divmod(image.shape[0] + GAP_PX, prompts)
    if rest or side <= GAP_PX:
        raise BrokenFileError(f"a sheet of {image.shape[0]} rows holds no {prompts} images")
    padded = np.pad(image, [(0, GAP_PX), (0, GAP_PX), (0, 0)], constant_values=255)
    rows = padded.reshape(prompts, side, padded.shape[1] // side, side, 3)
    turned: NDArray[np.uint8] = rows.transpose(2, 1, 0, 3, 4).reshape(-1, prompts * side, 3)
    return turned


def in_best_form(sheets: Mapping[str, NDArray[np.uint8]], columns: Mapping[str, int]) -> Encoded:
    """JPEG files that are MOST_KB together, or as near as it gets."""
    encoded: Encoded = {}
    for side, quality in FORMS:
        encoded = {
            name: _jpeg(sheet, columns[name] * side, quality) for name, sheet in sheets.items()
        }
        if sum(map(len, encoded.values())) <= MOST_KB * 1000:
            break
    return encoded


Encoded = dict[str, bytes]


def _jpeg(image: NDArray[np.uint8], width: int, quality: int) -> bytes:
    from PIL import Image

    picture = Image.fromarray(image)
    if picture.width > width:
        height = round(picture.height * width / picture.width)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality, optimize=True)
    return content.getvalue()


def sheets_of(found: Sequence[Found], results: Path) -> Encoded:
    """The worst prompts of every lossy level that has a sheet, small, by the name of their file."""
    sheets, columns = {}, {}
    for one in found:
        for level in one.lossy():
            path = results / one.name / "worst" / f"{level}.png"
            if path.is_file():
                name = f"quality-{one.name}-worst-{level}.jpg"
                columns[name] = len(one.summary["levels"][level]["worst"])
                sheets[name] = sheet_of(path.read_bytes(), columns[name])
    return in_best_form(sheets, columns)


def worst_lines(one: Found, sheets: Collection[str]) -> Iterator[str]:
    """The ten worst prompts of each lossy level, and their sheet if there is one of that name."""
    for level in one.lossy():
        told = one.summary["levels"][level]
        yield from ("", f"Worst by `{level}` ({told['ranked_by']}):", "")
        rows = [f"{worst['value']:.4f} {worst['prompt']}" for worst in told["worst"]]
        yield from (f"{number}. {row}" for number, row in enumerate(rows, start=1))
        if (file := f"quality-{one.name}-worst-{level}.jpg") in sheets:
            words = f"from the top: the reference's images, those of {level}, the ground truth"
            yield from ("", f"![{words}]({file})")


def write_page(options: argparse.Namespace) -> list[str]:
    """Everything into the page and beside it; what was written."""
    found = found_in(options.summaries)
    folder = options.page.parent
    sheets = sheets_of(found, options.out)
    for name, content in sheets.items():
        write_whole(folder / name, content)
    # A clone has no results, but the sheets that were made from them.
    known = {*sheets, *(path.name for path in folder.glob("quality-*-worst-*.jpg"))}
    draw_levels(found, options.times, folder / f"{CHART}.png")
    write_table(options.page, [f"![time against cost of every level]({CHART}.png)"], CHART)
    for one in found:
        name = f"quality-{one.name}"
        draw_histograms(one.summary, folder / f"{name}-histograms.png")
        lines = [markdown(one.summary)[0], "", *table(one.summary), "", *tails(one), ""]
        lines += [f"![distributions {one.label}]({name}-histograms.png)"]
        write_table(options.page, [*lines, *worst_lines(one, known)], name)
    return [CHART, *(f"quality-{one.name}" for one in found), *sheets]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; 2 for files that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m studies.quality_page", description=__doc__)
    add = parser.add_argument
    add("summaries", type=Path, help="folder of quality-NAME.json")
    add("--page", type=Path, required=True, help="page with marks; images are put beside it")
    add("--out", type=Path, default=Path("build/quality"), help="results, for images of prompts")
    add("--times", type=Path, default=HISTORY, help=f"history of latencies ({HISTORY})")
    options = parser.parse_args(arguments)
    try:
        print(f"wrote {', '.join(write_page(options))}")
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
