"""The page of evaluations: `python -m studies.quality_page docs/samples --page PAGE`.

Of every evaluation of `studies.quality_gpus` whose summary is there: its table, histograms and the
ten worst prompts of each lossy level with their images; and one chart of time against cost for all
levels together. What is not there yet stays as it is on the page.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdopt.bench.evaluation.pixels import Image
from sdopt.bench.evaluation.summary import GAP_PX, markdown, table
from sdopt.bench.report.results import filled, markdown_table, read_page
from sdopt.bench.stored.summaries import read_summary
from sdopt.errors import BrokenFileError, SdoptError
from sdopt.levels import LEVELS
from sdopt.util.files import cause
from studies.quality import (
    SHOWN,
    as_png,
    draw_histograms,
    write_all,
)
from studies.quality_chart import draw_levels
from studies.quality_runs import LOSSY, Lossy, kept
from studies.quality_sheets import Summary, check_levels, check_sheets, read_sheet

HISTORY = Path("baselines/history/nvidia-h200-140gib-700-w/sd15-random")
CHART = "quality-levels"
MOST_KB = 420
"""Of all sheets together."""
FORMS = tuple((side, quality) for side in (96, 80, 64, 48) for quality in (85, 70, 55))
"""Side of an image in a sheet, and JPEG's quality: from the best to the smallest."""
LOSSY_FIELDS = ("decoder", "cfg_cutoff", "feature_cache", "float8", "steps", "scheduler")
WORST = "worst"
SHEET = re.compile(r"\]\((quality-[^()\s]+-worst-[^()\s]+\.jpg)\)")
"""Where a page shows a sheet."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """An evaluation whose summary is there."""

    name: str
    path: Path
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
    """In the order of LOSSY. Raises SdoptError if there is none, or one that its name denies."""
    found = []
    for one in LOSSY:
        path = kept(folder, one.name)
        if path.is_file():
            summary = read_summary(path)
            check_levels(path, summary)
            check_name(path, summary, one)
            found.append(Found(name=one.name, path=path, summary=summary))
    if not found:
        raise SdoptError(
            f"{folder} holds no {kept(Path(), LOSSY[0].name)} or another of them; run "
            f"python -m studies.quality_gpus lossy --json {folder}/quality-scaling.json first"
        )
    return found


def check_name(path: Path, summary: Summary, one: Lossy) -> None:
    """Raise BrokenFileError for a summary of another evaluation than the one of that name.

    The number of scenes and the source are not checked: any may be evaluated.
    """
    told = {
        "reference": (summary["reference"], one.reference),
        "levels": (sorted(summary["levels"]), sorted({one.reference, *one.levels})),
        "guidance": (summary["run"]["guidance_scale"], one.guidance),
    }
    for what, (value, expected) in told.items():
        if value != expected:
            raise BrokenFileError(
                f"{path} is not the evaluation {one.name}: it holds {what} {value!r}, expected "
                f"{expected!r}; LOSSY in studies/quality_runs.py says which has which name"
            )


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


def turned(image: Image, prompts: int) -> Image:
    """A sheet of `sdopt evaluate` on its side: a column a prompt, as pages are wide."""
    side = (image.shape[0] + GAP_PX) // prompts
    padded = np.pad(image, [(0, GAP_PX), (0, -image.shape[1] % side), (0, 0)], constant_values=255)
    rows = padded.reshape(prompts, side, padded.shape[1] // side, side, 3)
    on_its_side: Image = rows.transpose(2, 1, 0, 3, 4).reshape(-1, prompts * side, 3)
    return on_its_side


def in_best_form(sheets: Mapping[str, Image], columns: Mapping[str, int]) -> Encoded:
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


def _jpeg(image: Image, width: int, quality: int) -> bytes:
    from PIL import Image as Images

    picture = Images.fromarray(image)
    if picture.width > width:
        height = round(picture.height * width / picture.width)
        picture = picture.resize((width, height), Images.Resampling.LANCZOS)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality, optimize=True)
    return content.getvalue()


def sheet_name(one: Found, level: str) -> str:
    """Of its file beside the page."""
    return f"quality-{one.name}-worst-{level}.jpg"


def sheets_of(found: Sequence[Found], results: Path) -> Encoded:
    """The worst prompts of every lossy level that has a sheet, small, by the name of their file.

    Raises BrokenFileError for sheets of another evaluation.
    """
    sheets, columns = {}, {}
    for one in found:
        folder = results / one.name / WORST
        there = [level for level in one.lossy() if (folder / f"{level}.png").is_file()]
        if there:
            check_sheets(one.path, one.summary, folder)
        for level in there:
            prompts = len(one.summary["levels"][level]["worst"])
            image = read_sheet(folder / f"{level}.png", prompts)
            columns[sheet_name(one, level)] = prompts
            sheets[sheet_name(one, level)] = turned(image, prompts)
    return in_best_form(sheets, columns)


def missing_sheets(
    found: Sequence[Found], made: Collection[str], results: Path, page: Path, text: str
) -> Iterator[str]:
    """A line for each sheet that is neither made nor beside the page, with what becomes of it."""
    for one in found:
        for level in one.lossy():
            name = sheet_name(one, level)
            if name not in made and not (page.parent / name).is_file():
                kept_line = f"]({name})" in text
                yield (
                    f"no sheet of {level}: there is no {results / one.name / WORST}/{level}.png "
                    f"(--out), and no {page.parent / name}; "
                    f"{'the line that shows it stays' if kept_line else 'no line shows it'} "
                    f"in {page}"
                )


def worst_lines(one: Found, sheets: Collection[str]) -> Iterator[str]:
    """The ten worst prompts of each lossy level, and their sheet if there is one of that name."""
    for level in one.lossy():
        told = one.summary["levels"][level]
        yield from ("", f"Worst by `{level}` ({told['ranked_by']}):", "")
        rows = [f"{worst['value']:.4f} {worst['prompt']}" for worst in told["worst"]]
        yield from (f"{number}. {row}" for number, row in enumerate(rows, start=1))
        if (file := sheet_name(one, level)) in sheets:
            words = f"from the top: the reference's images, those of {level}, the ground truth"
            yield from ("", f"![{words}]({file})")


def write_page(options: argparse.Namespace) -> list[str]:
    """Everything into the page and beside it, once all of it is made; what was written.

    A clone has no results: what the page shows of them, and what is beside it, stays. Whether such
    a sheet shows the prompts of today's summary is not checked: a JPEG does not say.
    """
    found = found_in(options.summaries)
    folder, page = options.page.parent, options.page
    text = read_page(page)
    sheets = sheets_of(found, options.out)
    missing = list(missing_sheets(found, sheets, options.out, page, text))
    there = {path.name for path in folder.glob("quality-*-worst-*.jpg")}
    known = {*sheets, *there, *SHEET.findall(text)}
    chart = draw_levels({one.label: one.summary for one in found}, options.times)
    images = {f"{CHART}.png": as_png(chart), **sheets}
    text = filled(page, text, [f"![time against cost of every level]({CHART}.png)"], CHART)
    for one in found:
        name = f"quality-{one.name}"
        images[f"{name}-histograms.png"] = draw_histograms(one.summary)
        lines = [markdown(one.summary)[0], "", *table(one.summary), "", *tails(one), ""]
        lines += [f"![distributions {one.label}]({name}-histograms.png)"]
        text = filled(page, text, [*lines, *worst_lines(one, known)], name)
    write_all(page, text, images)
    for line in missing:
        print(line, file=sys.stderr)
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
    except OSError as error:
        print(f"error: {error.filename}: {cause(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
