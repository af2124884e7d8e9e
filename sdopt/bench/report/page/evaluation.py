"""What an evaluation over many prompts found, for a report: read as a stranger's file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdopt.bench.judge.verdict import Outcome
from sdopt.bench.report.page.facts import plain
from sdopt.bench.report.page.images import uris_of
from sdopt.bench.report.page.sentences import ORDER, Sentence
from sdopt.bench.report.page.tables import Cell, Table, number_cell
from sdopt.bench.stored.soundness import Unsound
from sdopt.bench.stored.stored_image import read_pixels
from sdopt.bench.stored.summaries import FEWEST, read_summary
from sdopt.errors import BrokenFileError
from sdopt.util.files import cause, damaged, given

SUMMARY, SHEETS = "summary.json", "worst"
BESIDE = "quality"
"""Where it is looked for beside a run, if no folder is named; nothing is said without one."""
MOST_LEVELS = 60
MOST_BARS = 100
MOST_BYTES = 400_000
"""Of all sheets of worst prompts together."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bin of a histogram: where it begins, how many are in it, its height from 0 to 1."""

    edge: float
    count: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A level: its histogram and its worst prompts, by the score that they are ranked by.

    `sheet` is a data URI, a row of images each: the reference's, the level's, the true one.
    """

    level: str
    ranked_by: str
    bars: Sequence[Bar]
    worst: Table
    sheet: str = ""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """All of it; `note` says what it is of, or why it cannot be shown."""

    note: str
    sentences: Sequence[Sentence] = ()
    table: Table | None = None
    levels: Sequence[Judged] = ()


def evaluated(run: Path, source: str, folder: Path | None) -> Evaluated | None:
    """The evaluation in a folder, or in the one beside a run if there is one.

    Raises BrokenFileError for a folder that was named and holds none.
    """
    where = folder or run.parent / BESIDE
    if folder is None and not (where / SUMMARY).is_file():
        return None
    try:
        return _read(where, source)
    except BrokenFileError as error:
        if folder is not None:
            raise
        return Evaluated(note=f"The evaluation beside the run cannot be shown: {error}")


def _read(where: Path, source: str) -> Evaluated:
    try:
        with given(where / SUMMARY, "name a folder that sdopt evaluate wrote"):
            return _of(where, read_summary(where / SUMMARY), source)
    except BrokenFileError:
        raise
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(where / SUMMARY, f"is not what an evaluation wrote: {error!r}") from error


def _of(where: Path, summary: Mapping[str, Any], source: str) -> Evaluated:
    levels = dict(list(summary["levels"].items())[:MOST_LEVELS])
    reference = summary["reference"]
    limits = {
        (str(one["level"]), str(one["metric"])): one.get("limit") for one in summary["verdicts"]
    }
    sheets = uris_of(dict(_sheets(where, levels, reference)), MOST_BYTES)
    judged = [
        Judged(
            level=name,
            ranked_by=told["ranked_by"],
            bars=list(_bars(told)),
            worst=_worst(told),
            sheet=sheets.get(name, ""),
        )
        for name, told in levels.items()
        if name != reference
    ]
    sentences = sorted(_sentences(summary), key=lambda one: ORDER.index(one.outcome))
    return Evaluated(
        note=_note(where, summary, source),
        sentences=sentences,
        table=_table(levels, reference, limits),
        levels=judged,
    )


def _note(where: Path, summary: Mapping[str, Any], source: str) -> str:
    run = summary["run"]
    device = ", ".join(run.get("cards", ())) or run["device"]
    told = (
        f"{summary['prompts']} prompts ({run['origin']}), source {run['source']}, guidance "
        f"{float(run['guidance_scale']):g}, {run['size_px']} px, {run['dtype']} on "
        f"{device}, torch {run['torch']}, in {where}. Each level "
        f"against {summary['reference']}, with 95 % intervals."
    )
    if run["source"] != source:
        told += f" The run above is of another source, {source}: compare no number of the two."
    return told


def _sentences(summary: Mapping[str, Any]) -> Iterator[Sentence]:
    words = {outcome.value: outcome for outcome in Outcome}
    for one in summary["verdicts"]:
        outcome = words.get(str(one["outcome"]), Outcome.FAULT)
        yield Sentence(level=str(one["level"]), outcome=outcome, text=str(one["reason"]))


Limits = Mapping[tuple[str, str], Any]


def _table(levels: Mapping[str, Any], reference: str, limits: Limits) -> Table:
    """A row for each level and score that it is judged by."""
    headings = ["level", "score", "cost", "from", "to", "limit", "worst 1 %", "prompts"]
    rows = []
    for level, told in levels.items():
        for name, score in told["scores"].items():
            if level == reference or not _is_judged(name, told["scores"]):
                continue
            limit = limits.get((level, name.removesuffix("_difference")))
            has_interval = score["count"] >= FEWEST
            bounds = (score["low"], score["high"]) if has_interval else (None, None)
            numbers = (score["mean"], *bounds, limit, score["worst_percent"])
            rows.append(
                [
                    Cell(level, level),
                    Cell(name, name),
                    *(number_cell(_number(value), ".4f") for value in numbers),
                    number_cell(_number(score["count"]), ".0f"),
                ]
            )
    return Table(headings=headings, rows=rows)


def _is_judged(name: str, scores: Mapping[str, Any]) -> bool:
    """A score whose difference to the reference is there is judged by that."""
    return f"{name}_difference" not in scores


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _bars(told: Mapping[str, Any]) -> Iterator[Bar]:
    found = told["scores"].get(told["ranked_by"])
    if found is None:
        return
    histogram = found["histogram"]
    pairs = list(zip(histogram["edges"], histogram["counts"], strict=False))[:MOST_BARS]
    most = max((count for _, count in pairs), default=0)
    for edge, count in pairs:
        yield Bar(edge=float(edge), count=count, share=count / most if most else 0.0)


def _worst(told: Mapping[str, Any]) -> Table:
    rows = [
        [
            Cell(str(one["index"]), float(one["index"])),
            number_cell(_number(one["value"]), ".4f"),
            Cell(one["prompt"], one["prompt"]),
        ]
        for one in told["worst"][:MOST_BARS]
    ]
    return Table(headings=["index", told["ranked_by"], "prompt"], rows=rows)


def _sheets(where: Path, levels: Mapping[str, Any], reference: str) -> Iterator[tuple[str, Any]]:
    """The sheet of each level that has one; a name leads nowhere else."""
    for name in levels:
        path = where / SHEETS / f"{name}.png"
        if name != reference and plain(name) and path.is_file():
            yield name, _pixels(path)


def _pixels(path: Path) -> Any:
    with given(path, "sdopt evaluate makes it anew"):
        try:
            return read_pixels(path)
        except (OSError, Unsound) as error:
            what = f"cannot be read: {cause(error)}" if isinstance(error, OSError) else str(error)
            raise damaged(path, what) from error
