"""Images a second by batch size: `python -m studies.throughput --json throughput.json`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdopt.bench.report.results import markdown_table, write_table
from sdopt.bench.session import PipelinePool, RunContext, Settings
from sdopt.errors import OutOfMemoryError, SdoptError
from sdopt.levels import LEVELS, Level, get_level
from sdopt.pipelines.workload import Request, generate_batch
from sdopt.util.progress import Progress
from studies.rows import Row, Rows, continue_rows, heading, latency_ms, read_rows

if TYPE_CHECKING:
    from sdopt.pipelines.pipeline import LevelPipeline

FASTEST_LOSSLESS = "hoisted"
"""The fastest level whose images are those of plain diffusers with the same sampler and steps."""
MEASURED_LEVELS = (FASTEST_LOSSLESS, "final")
BATCHES = (1, 2, 4, 8, 16)
OUT_OF_MEMORY = "out of memory"
SEED_STEP = 1000
FIELDS = ("level", "batch")
"""What tells rows of throughput from rows of anything else."""
HEADINGS = (
    "level",
    "batch",
    "images / s",
    "ms a batch",
    "rounds, ms",
    "first call, s",
    "allocated / reserved, MiB",
)


def batch_of(requests: Sequence[Request], size: int) -> tuple[Request, ...]:
    """That many requests: the workload's in turn, each time around with other seeds."""
    return tuple(
        replace(request, seed=request.seed + SEED_STEP * turn)
        for turn, request in (
            (index // len(requests), requests[index % len(requests)]) for index in range(size)
        )
    )


def measure(pool: PipelinePool, level: Level, size: int) -> dict[str, Any]:
    """One level at one batch size, in a pipeline of its own; out of memory is a result too."""
    row = {"name": f"{level.name} x {size}", "level": level.as_dict(), "batch": size}
    try:
        return {**row, **_measured(pool, level, size)}
    except OutOfMemoryError as error:
        return {**row, "error": OUT_OF_MEMORY, "detail": str(error)}


def _measured(pool: PipelinePool, level: Level, size: int) -> dict[str, Any]:
    pipeline = pool.build(level)
    try:
        return _timed(pipeline, batch_of(pool.run.workload.requests, size))
    finally:
        pool.free(pipeline)


def _timed(pipeline: LevelPipeline, requests: Sequence[Request]) -> dict[str, Any]:
    """The first call compiles for this batch size; it is no round."""
    from sdopt.bench.measure import memory_of, rounds_of
    from sdopt.bench.measure.timing import elapsed_ms

    def generate() -> object:
        return generate_batch(pipeline, requests)

    device = pipeline.device
    first_ms = elapsed_ms(generate, device)
    rounds = rounds_of(generate, device)
    peaks = memory_of(generate, device)
    return {
        "first_call_s": first_ms / 1e3,
        "rounds_ms": rounds,
        "peak_allocated_mib": peaks and peaks.peak_allocated_mib,
        "peak_reserved_mib": peaks and peaks.peak_reserved_mib,
    }


def throughput_table(rows: Sequence[Row]) -> list[str]:
    """A Markdown table, a line for each level and batch size, in the order of the ladder."""
    place = {name: number for number, name in enumerate(LEVELS)}  # a level of old times comes last
    ordered = sorted(
        rows, key=lambda row: (place.get(row["level"]["name"], len(place)), row["batch"])
    )
    return markdown_table(HEADINGS, [_cells(row) for row in ordered])


def _cells(row: Row) -> tuple[str, ...]:
    title = (f"`{row['level']['name']}`", str(row["batch"]))
    time_ms = latency_ms(row)
    if time_ms is None:
        return (*title, row["error"], *("-",) * (len(HEADINGS) - 3))
    rounds, allocated = row["rounds_ms"], row["peak_allocated_mib"]
    return (
        *title,
        f"{1e3 * row['batch'] / time_ms:.2f}",
        f"{time_ms:.1f}",
        f"{min(rounds):.1f} to {max(rounds):.1f}",
        f"{row['first_call_s']:.1f}",
        f"{allocated:.0f} / {row['peak_reserved_mib']:.0f}" if allocated is not None else "-",
    )


def _measure_all(options: argparse.Namespace) -> Rows:
    """Measure what was asked for; each row is written as soon as it is there."""
    run = RunContext(
        settings=Settings(source=options.source, baselines_root=Path("baselines")),
        progress=Progress(sys.stderr),
    )
    pool = PipelinePool(run=run)
    rows = continue_rows(options.json, run.made_on())
    for level in [get_level(name) for name in options.levels]:
        for size in options.batches:
            with run.progress.during(f"[{level.name}] batch of {size}"):
                rows.put(measure(pool, level, size))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and maybe write it into a page; 2 for a mistake in the options."""
    parser = argparse.ArgumentParser(prog="python -m studies.throughput", description=__doc__)
    parser.add_argument("--source", default="auto", help="weights, as --sdopt-source")
    parser.add_argument("--levels", nargs="+", default=MEASURED_LEVELS, metavar="LEVEL")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, metavar="SIZE")
    parser.add_argument(
        "--json",
        type=Path,
        default=Path("throughput.json"),
        help="file of rows, all of the same machine, source and versions",
    )
    parser.add_argument("--show", action="store_true", help="measure nothing: the rows of --json")
    parser.add_argument("--page", type=Path, help="page to write the table into")
    options = parser.parse_args(arguments)
    if min(options.batches) < 1:
        parser.error(f"--batches {min(options.batches)}: a batch has 1 image or more")
    try:
        rows = read_rows(options.json, *FIELDS) if options.show else _measure_all(options)
        above, table = heading(rows), throughput_table(list(rows.rows.values()))
        if options.page:
            write_table(options.page, table, "throughput")
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join([above, "", *table]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
