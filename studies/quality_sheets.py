"""Whether sheets of worst prompts are of the evaluation that they are shown with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdopt.bench.evaluation.pixels import Image
from sdopt.bench.evaluation.summary import GAP_PX, JSON
from sdopt.bench.stored.soundness import Unsound
from sdopt.bench.stored.stored_image import read_pixels
from sdopt.bench.stored.summaries import read_summary
from sdopt.errors import BrokenFileError, UnknownNameError
from sdopt.levels import LEVELS
from sdopt.util.files import cause

Summary = Mapping[str, Any]
SHOWN_CHARACTERS = 80
"""Of a value that is told."""


def check_levels(path: Path, summary: Summary) -> None:
    """Raise BrokenFileError for a level that is none: files are named by them."""
    for name in (summary["reference"], *summary["levels"]):
        if name not in LEVELS:
            raise BrokenFileError(f"{path}: {UnknownNameError('level', name, LEVELS)}")


def check_sheets(path: Path, summary: Summary, sheets: Path) -> None:
    """Raise BrokenFileError if a folder's sheets are not of the summary in that path.

    `sdopt evaluate` writes a summary.json into the folder above: it has to tell of the same run and
    the same worst prompts. Whether the images are those prompts' is not checked: none says so.
    """
    beside = sheets.parent / JSON
    told = _told_by(read_summary(beside))
    for what, value in _told_by(summary).items():
        if told.get(what) != value:
            raise BrokenFileError(
                f"{sheets} is of another evaluation than {path}: {beside} holds {what} "
                f"{_short(told.get(what))}, expected {_short(value)}; name the folder of that one"
            )


def _told_by(summary: Summary) -> dict[str, Any]:
    """What makes the sheets what they are."""
    run = {f"run.{name}": value for name, value in summary["run"].items()}
    worst = {f"worst of {name}": told["worst"] for name, told in summary["levels"].items()}
    return {"prompts": summary["prompts"], "reference": summary["reference"], **run, **worst}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def read_sheet(path: Path, prompts: int) -> Image:
    """A sheet of so many rows. Raises BrokenFileError for anything else."""
    try:
        image: Image = read_pixels(path)
    except (OSError, Unsound) as error:
        what = f"cannot be read: {cause(error)}" if isinstance(error, OSError) else str(error)
        raise BrokenFileError(f"{path} {what}; sdopt evaluate makes it anew") from error
    side, rest = divmod(image.shape[0] + GAP_PX, max(prompts, 1))
    if rest or side <= GAP_PX or not prompts:
        raise BrokenFileError(f"{path}, {image.shape[0]} pixels high, holds no {prompts} images")
    return image
