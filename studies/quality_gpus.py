"""GPU figures of evaluations: `python -m studies.quality_gpus lossy`, then `scaling`.

On a host with two GPUs, from the root of a clone. Both end with a table, write JSON, and go on
where they stopped if they are run again. Each launches its processes once.

- `lossy`: 2,000 scenes of `embedded`, every lossy level against the same without the loss, at
  guidance 3.0 and 7.5. `python -m studies.quality SUMMARY --page PAGE` makes the page of each.
- `scaling`: the 500 captions on `sd15-random` by `turbo` and `final`, first by one of the
  processes alone, then by all of them (`--processes`, 2). Images a second of each, steady, and the
  factor; the goal is 1.9. `lossy --warm` compiles for it beforehand, beside what is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sdopt.bench.evaluation.summary import JSON, table
from sdopt.bench.report.results import markdown_table, write_table
from sdopt.errors import SdoptError, WorkerError
from sdopt.util.children import python_path
from sdopt.util.files import write_whole
from studies.quality import read_summary
from studies.quality_runs import LOSSY, SCALING, WARM, chosen, kept

HEADINGS = ("level", "processes", "images / s", "times one process")
SCHEMA = "sdopt-quality-gpus/1"
GOAL = 1.9
MOST_THREADS = 4


def command(processes: int, arguments: Sequence[str]) -> list[str]:
    """As the documentation has it: Accelerate starts the processes; on a CPU torchrun does.

    Port 0 is one that is free.
    """
    import torch

    several = ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else []
    launcher = ["accelerate.commands.launch", *several, "--num_processes", str(processes)]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    if not torch.cuda.is_available():
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, "-m", *launcher, "-m", "studies.quality_runs", *arguments]


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Of the processes; cores are shared out, if another launch runs beside them too."""
    cores = len(os.sched_getaffinity(0)) // options.processes
    return {
        **os.environ,
        "PYTHONPATH": python_path(),
        "TRANSFORMERS_VERBOSITY": "error",
        "OMP_NUM_THREADS": str(max(1, min(MOST_THREADS, cores))),
        "TORCHINDUCTOR_COMPILE_THREADS": str(max(1, cores // 2 if options.warm else cores)),
    }


def launch(processes: int, arguments: Sequence[str], options: argparse.Namespace) -> None:
    """Run it with that many processes. Raises WorkerError if it does not end well."""
    given = command(processes, [*arguments, "--out", str(options.out)])
    began = time.monotonic()
    print(" ".join(given), file=sys.stderr, flush=True)
    done = subprocess.run(given, env=environment(options), check=False)
    print(f"{arguments[0]}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if done.returncode:
        raise WorkerError(
            f"{arguments[0]} in {options.out} ended with {done.returncode}; see above, and run "
            "this again: it goes on where it stopped"
        )


def scaling(options: argparse.Namespace) -> list[str]:
    """Rates with one process and with several, as rows; written as JSON."""
    launch(options.processes, [SCALING, *_scaling_arguments(options)], options)
    rows = []
    for processes in dict.fromkeys((1, options.processes)):
        summary = read_summary(options.out / f"{SCALING}-{processes}" / JSON)
        rows += rates(summary)
    add_factors(rows)
    content = {"schema": SCHEMA, "run": summary["run"], "goal": GOAL, "rows": rows}
    write_whole(options.json, json.dumps(content, indent=1).encode() + b"\n")
    lines = markdown_table(HEADINGS, [_cells(row) for row in rows])
    if options.page:
        write_table(options.page, lines, "quality-scaling")
    return lines


def _scaling_arguments(options: argparse.Namespace) -> list[str]:
    given = ["--source", options.source, "--captions", str(options.captions)]
    return [*given, "--scenes", str(options.scenes), *_steps(options)]


def _steps(options: argparse.Namespace) -> list[str]:
    return ["--steps", str(options.steps)] if options.steps else []


def rates(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each level."""
    return [
        {"level": level, **{key: told["rate"][key] for key in ("processes", "images_per_s")}}
        for level, told in summary["levels"].items()
    ]


def add_factors(rows: Sequence[dict[str, Any]]) -> None:
    """How many times as fast as one process each row is, if both are known."""
    alone = {row["level"]: row["images_per_s"] for row in rows if row["processes"] == 1}
    for row in rows:
        one, rate = alone.get(row["level"]), row["images_per_s"]
        row["factor"] = rate / one if rate and one else None


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    rate, factor = row["images_per_s"], row["factor"]
    return (
        f"`{row['level']}`",
        str(row["processes"]),
        "-" if rate is None else f"{rate:.2f}",
        "-" if factor is None else f"{factor:.2f}",
    )


def lossy(options: argparse.Namespace) -> list[str]:
    """The tables of every evaluation; their summaries are kept beside `--json`."""
    keep = options.json.parent
    given = ["lossy", "--keep", str(keep), "--scenes", str(options.scenes), *_steps(options)]
    if options.only:
        given += ["--only", *options.only]
    with warming(options) if options.warm else nullcontext():
        launch(options.processes, [*given, "--batch", str(options.batch)], options)
    lines: list[str] = []
    for one in chosen(options.only):
        file = kept(keep, one.name)
        lines += [f"{one.name}: {file}", "", *table(read_summary(file)), ""]
    return lines


@contextmanager
def warming(options: argparse.Namespace) -> Iterator[None]:
    """Beside what is no measurement of time, compile what `scaling` needs: a part each."""
    given = [WARM, *_scaling_arguments(options), "--out", str(options.out)]
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "warm.log").open("wb") as log:
        warm = subprocess.Popen(
            command(options.processes, given), env=environment(options), stdout=log, stderr=log
        )
        try:
            yield
        finally:
            print(f"warming ended with {warm.wait()}: {log.name}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the two, print its table; 2 if an evaluation fails."""
    parser = argparse.ArgumentParser(prog="python -m studies.quality_gpus", description=__doc__)
    parser.add_argument("what", choices=("scaling", "lossy"))
    add = parser.add_argument
    add("--processes", type=int, default=2, help="GPUs of this host (2)")
    add("--out", type=Path, default=Path("build/quality"), help="folder of results")
    add("--json", type=Path, default=Path("build/quality/scaling.json"), help="file to write")
    add("--source", default="sd15-random", help="of scaling (sd15-random)")
    add("--captions", type=int, default=500, help="of scaling (500, all)")
    add("--page", type=Path, help="page to write the table of scaling into")
    add("--scenes", type=int, default=2000, help="of lossy, or of --source embedded (2000)")
    add("--warm", action="store_true", help="beside lossy, compile what scaling needs")
    add("--batch", type=int, default=32, help="most images at once, of lossy (32)")
    add("--only", nargs="*", choices=[one.name for one in LOSSY], help="of lossy (all)")
    add("--steps", type=int, help="of every level (their own), to try the command")
    options = parser.parse_args(arguments)
    try:
        lines = {"scaling": scaling, "lossy": lossy}[options.what](options)
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
