"""The least memory that each level works in: `python -m studies.memory_needs`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sdopt.bench.report.results import markdown_table, write_table
from sdopt.bench.session import RunContext, Settings
from sdopt.errors import SdoptError
from sdopt.levels import LEVELS, Level, get_level
from sdopt.util.progress import Progress
from studies.capped import Attempt, RefusedError, Try, starting_fresh, used_mib
from studies.memory_rows import checked, finished, read_needs
from studies.rows import Row, Rows, continue_rows

TOTALS_GIB = (8, 6, 4)
"""Of cards that people have."""
STEP_MIB = 128.0
"""How near the greatest cap that failed comes to the least that worked, unless tries run out."""
MOST_TRIES = 4
"""With a cap, for each level: a try is a process, and takes seconds."""
MARK = "memory-needs"
EAGER_OR_ENGINE = tuple(name for name, level in LEVELS.items() if not level.compiled)
"""Inductor's levels take minutes to compile, and have to be asked for by name."""
HEADINGS = (
    "level",
    "needs, MiB",
    "of these outside the allocator",
    "ms an image then",
    "without a cap, MiB",
    "ms",
    *(f"{total} GiB" for total in TOTALS_GIB),
)


def search(
    level: Level, attempt: Try, tried: Sequence[Attempt] = (), most: int = MOST_TRIES
) -> Iterable[Row]:
    """The level's row after each try, the last one complete; `tried` are tries of an earlier run.

    First without a cap: what was reserved then is enough, and less than the weights is not. Then
    what cards of 8, 6 and 4 GiB leave beside what lies outside the allocator, then halfway between.
    """
    tries = list(tried)
    if not tries:
        tries.append({"cap_mib": None, **attempt(level.name, None)})
        yield _row(level, tries, done=False)
    while len(tries) <= most and (cap := next_cap(tries)) is not None:
        tries.append({"cap_mib": cap, **attempt(level.name, cap)})
        yield _row(level, tries, done=False)
    yield _row(level, tries, done=True)


def next_cap(tries: Sequence[Attempt]) -> float | None:
    """The cap to try next, or None if the need is known well enough."""
    low, high = bounds(tries)
    outside = outside_mib(tries)
    for total in TOTALS_GIB:
        cap = math.floor(1024 * total - outside)
        if low < cap < high and not any(one["cap_mib"] == cap for one in tries):
            return float(cap)
    return float(math.ceil((low + high) / 2)) if high - low > STEP_MIB else None


def bounds(tries: Sequence[Attempt]) -> tuple[float, float]:
    """The greatest cap that is too little, and the least that is enough, in MiB."""
    works = [one for one in tries if one["works"]]
    enough = [min(one["cap_mib"] or math.inf, one["peak_reserved_mib"]) for one in works]
    failed = [one["cap_mib"] for one in tries if not one["works"]]
    return max([works[0]["held_mib"], *failed]), math.ceil(min(enough))


def outside_mib(tries: Sequence[Attempt]) -> float:
    """What the process held besides, at most."""
    return max(float(one["outside_mib"]) for one in tries if one["works"])


def _row(level: Level, tries: Sequence[Attempt], *, done: bool) -> Row:
    low, high = bounds(tries)
    outside = math.ceil(outside_mib(tries))
    return {
        "name": level.name,
        "level": level.as_dict(),
        "done": done,
        "need_mib": high + outside,
        "outside_mib": outside,
        "unsure_mib": high - low,
        "tries": list(tries),
    }


def table(rows: Sequence[Row]) -> list[str]:
    """The page's table, in the order of the ladder, and what to choose on small cards."""
    known = sorted((row for row in rows if row["done"]), key=lambda row: _place(row["name"]))
    return [*markdown_table(HEADINGS, [_cells(row) for row in known]), "", *choices(known)]


def _place(name: str) -> int:
    return list(LEVELS).index(name)


def _cells(row: Row) -> list[str]:
    free, least = row["tries"][0], _least(row)
    return [
        f"`{row['name']}`",
        f"{row['need_mib']:.0f}",
        f"{row['outside_mib']:.0f}",
        f"{least['ms']:.0f}",
        f"{free['peak_reserved_mib'] + free['outside_mib']:.0f}",
        f"{free['ms']:.0f}",
        *("yes" if fits(row, total) else "no" for total in TOTALS_GIB),
    ]


def _least(row: Row) -> Attempt:
    """The try with the smallest cap that worked."""
    works: list[Attempt] = [one for one in row["tries"] if one["works"]]
    return min(works, key=lambda one: one["cap_mib"] or math.inf)


def fits(row: Row, total_gib: int) -> bool:
    """Whether it works on a card of so much memory that nothing else uses."""
    return bool(row["need_mib"] <= 1024 * total_gib)


def choices(rows: Sequence[Row]) -> list[str]:
    """A line for each size of card: the fastest level there, and the fastest without a loss.

    Levels in float8 are left out: they need a Hopper GPU, and none is so small.
    """
    lines = []
    for total in TOTALS_GIB:
        here = [row for row in rows if fits(row, total) and not row["level"]["float8"]]
        best, exact = fastest(here), fastest([row for row in here if _keeps_all(row["level"])])
        if best is None:
            lines.append(f"- {total} GiB: none of these levels.")
            continue
        without = f", `{exact}` without a loss of quality" if exact not in (best, None) else ""
        lines.append(f"- {total} GiB: `{best}`{without}.")
    return lines


def fastest(rows: Sequence[Row]) -> str | None:
    """The name of the level with the shortest time where its memory is smallest."""
    found = min(rows, key=lambda row: _least(row)["ms"], default=None)
    return None if found is None else str(found["name"])


def _keeps_all(level: dict[str, Any]) -> bool:
    """Whether its images are those of plain diffusers with the same sampler and steps."""
    whole = level["decoder"] == "full-vae" and level["cfg_cutoff"] is None
    return whole and not level["feature_cache"]


def measure_all(levels: Sequence[Level], rows: Rows, attempt: Try, progress: Progress) -> None:
    """Search for each level; each try is written as soon as it is there, and none is made twice."""
    for level in levels:
        before = rows.rows.get(level.name)
        if before is not None and level.changed_since(before["level"]):
            before = None
        if before is not None and before["done"]:
            continue
        with progress.during(f"[{level.name}] tries with less and less memory"):
            try:
                for row in search(level, attempt, before["tries"] if before else ()):
                    rows.put(row)
            except RefusedError as error:  # others may well run here
                print(f"left out: {error}", file=sys.stderr)


def _measured(options: argparse.Namespace) -> Rows:
    import torch

    if not torch.cuda.is_available():
        raise SdoptError("memory is capped on a CUDA device, and there is none; --show prints rows")
    run = RunContext(
        settings=Settings(source=options.source, baselines_root=Path("baselines")),
        progress=Progress(sys.stderr),
    )
    rows = checked(continue_rows(options.json, run.made_on()))
    attempt = starting_fresh(options.source, used_mib)
    levels = [get_level(name) for name in options.levels or EAGER_OR_ENGINE]
    measure_all(levels, rows, attempt, run.progress)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and maybe write it into a page; 2 for a mistake in the options."""
    parser = argparse.ArgumentParser(prog="python -m studies.memory_needs", description=__doc__)
    parser.add_argument("--source", default="sd15-random", help="weights, as --sdopt-source")
    parser.add_argument(
        "--levels",
        nargs="+",
        default=(),
        metavar="LEVEL",
        help="to measure (default: those without Inductor), or to --show (default: all rows)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=Path("docs/samples/memory-needs.json"),
        help="file of rows: what is in it is not measured again",
    )
    parser.add_argument("--show", action="store_true", help="measure nothing: the rows of --json")
    parser.add_argument("--page", type=Path, help="page to write the table into")
    options = parser.parse_args(arguments)
    try:
        for name in options.levels:
            get_level(name)
        rows = read_needs(options.json) if options.show else _measured(options)
        lines = table(finished(rows, options.levels if options.show else ()))
        made_on = f"{rows.made_on['device']}, source `{rows.made_on['source']}`"
        lines = [f"Measured on an {made_on}, {rows.made_on['dtype']}.", "", *lines]
        if options.page:
            write_table(options.page, lines, MARK)
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
