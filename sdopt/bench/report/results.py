"""The published table beside stored runs: `python -m sdopt.bench.report.results HISTORY_FOLDER`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from sdopt.bench.judge.statistics import judge_by_history
from sdopt.bench.metrics import HISTORY_RULES
from sdopt.bench.metrics.time import LATENCY_RULE
from sdopt.bench.report.published import published_seconds
from sdopt.bench.stored.judging import read_judging_runs
from sdopt.errors import BrokenFileError, SdoptError
from sdopt.levels import LEVELS
from sdopt.util.files import cause, read_plain, write_whole

HEADINGS = (
    "level",
    "A100, published",
    "speed-up there",
    "ms here",
    "runs, ms",
    "speed-up here",
    "GPU busy, ms",
    "kernels",
    "host syncs",
    "allocated / reserved / used, MiB",
    "a run is called slower from",
)
MOST_BYTES = 2**26
"""Of a page: far more than any has."""
LINE_END = re.compile("\r?\n")

Run = Mapping[str, Mapping[str, Any]]
"""Metrics per level."""


def results_table(runs: Sequence[Run]) -> list[str]:
    """A Markdown table: a row for each level of any run; medians over the runs' medians.

    The last column is the slowdown from which the next run's latency is called a regression, by
    the rule for a whole run of a GPU's suite.
    """
    base_ms = _median(runs, "baseline", "latency_ms")
    levels = [level for level in LEVELS if any(level in run for run in runs)]
    comparisons = len(levels) * sum(rule.is_for("cuda") for rule in HISTORY_RULES.values())
    rows = [(*_row(level, runs, base_ms), _limit(level, runs, comparisons)) for level in levels]
    return markdown_table(HEADINGS, rows)


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose first column is to the left and the others to the right."""
    return [_line(headings), _line(("---", *("---:" for _ in headings[1:]))), *map(_line, rows)]


def _row(level: str, runs: Sequence[Run], base_ms: float | None) -> tuple[str, ...]:
    published = published_seconds()
    there = published.get(level, [])
    here_ms = _median(runs, level, "latency_ms")
    memory = [
        _number(_median(runs, level, metric), ".0f")
        for metric in ("peak_allocated_mib", "peak_reserved_mib", "device_used_mib")
    ]
    return (
        f"`{level}`",
        " / ".join(f"{1e3 * seconds:.0f} ms" for seconds in there) or "-",
        f"{published['baseline'][0] / there[0]:.2f}x" if there else "-",
        _number(here_ms, ".1f"),
        ", ".join(f"{run[level]['latency_ms']:.1f}" for run in runs if level in run),
        f"{base_ms / here_ms:.2f}x" if base_ms and here_ms else "-",
        _number(_median(runs, level, "gpu_busy_ms"), ".1f"),
        _number(_median(runs, level, "kernel_launches"), ".0f"),
        _number(_median(runs, level, "host_syncs"), ".0f"),
        " / ".join(memory),
    )


def _limit(level: str, runs: Sequence[Run], comparisons: int) -> str:
    stored = [run[level]["latency_ms"] for run in runs if level in run]
    prior = LATENCY_RULE.priors[LATENCY_RULE.noise("cuda", LEVELS[level])]
    judged = judge_by_history(stored[-1], stored, prior, comparisons)
    percent = 100 * (judged.limit / judged.center - 1)
    return f"+{percent:.{0 if percent >= 10 else 1}f} %"


def _median(runs: Sequence[Run], level: str, metric: str) -> float | None:
    values = [run[level][metric] for run in runs if run.get(level, {}).get(metric) is not None]
    return median(values) if values else None


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_table(page: Path, table: Sequence[str], what: str = "measured") -> None:
    """Replace what stands between the page's marks of that name; its line ends stay.

    Raises BrokenFileError, and writes nothing, for a page without one pair of them or that cannot
    be read or written.
    """
    content = filled(page, read_page(page), table, what).encode()
    try:
        write_whole(page, content)
    except OSError as error:
        raise BrokenFileError(f"{page} cannot be written: {cause(error)}") from error


def read_page(page: Path) -> str:
    """Its text, line ends as they are. Raises BrokenFileError for what is no readable file."""
    try:
        return read_plain(page, MOST_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BrokenFileError(f"{page} cannot be read: {cause(error)}") from error


def filled(page: Path, text: str, table: Sequence[str], what: str = "measured") -> str:
    """That page's text with the table between its marks of that name, in the page's line ends.

    Raises BrokenFileError if it has not one of each, in their order.
    """
    begin, end = marks(what)
    for mark in (begin, end):
        if (count := text.count(mark)) != 1:
            has = f"has {mark} {count} times" if count else f"has no {mark}"
            raise BrokenFileError(f"{page} {has}; to write between, it needs one {begin} {end}")
    before, rest = text.split(begin)
    if end not in rest:
        raise BrokenFileError(f"{page} has {end} before {begin}; swap them")
    after = rest.split(end)[1]
    line_end = LINE_END.search(rest) or LINE_END.search(text)
    block = "\n".join([begin, "", *table, "", end])
    return before + block.replace("\n", line_end[0] if line_end else "\n") + after


def marks(what: str) -> tuple[str, str]:
    """The lines of a page that a table of that name is written between."""
    return f"<!-- {what}: begin -->", f"<!-- {what}: end -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and maybe write it into a page; 2 for a folder without usable runs."""
    parser = argparse.ArgumentParser(
        prog="python -m sdopt.bench.report.results", description=__doc__
    )
    parser.add_argument("folder", type=Path, metavar="HISTORY_FOLDER")
    parser.add_argument("--page", type=Path, help="page to write the table into")
    parser.add_argument("--mark", default="measured", help="between these marks in it (measured)")
    options = parser.parse_args(arguments)
    try:
        table = results_table([run.metrics for run in read_judging_runs(options.folder)])
        if options.page:
            write_table(options.page, table, options.mark)
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
