"""GPU figures of evaluations: `python -m studies.quality_gpus lossy`, then `scaling`.

On a host with two or more GPUs, from the root of a clone. Both end with a table, write JSON, and go
on where they stopped if they are run again. Each launches its processes once.

- `lossy`: 2,000 scenes of `embedded`, every lossy level against the same without the loss, at
  guidance 3.0 and 7.5. `python -m studies.quality SUMMARY --page PAGE` makes the page of each.
- `scaling`: the 500 captions on `sd15-random` by `turbo` and `final`, first by one of the
  processes alone, then by two, four and so on to all of them (`--processes`, 2). Images a second of
  each, steady, the factor, and what an image takes of the host; the goal is 1.9 for two and 3.7 for
  four. `lossy --warm` compiles for it beforehand, beside what is not timed.
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
from sdopt.bench.stored.summaries import read_summary
from sdopt.errors import SdoptError, WorkerError
from sdopt.util.children import python_path
from sdopt.util.files import write_whole
from studies.quality_runs import LOSSY, SCALED, SCALING, WARM, chosen, counts_of, kept

HEADINGS = (
    "level",
    "processes",
    "images / s",
    "of each process",
    "times one process",
    "efficiency",
    "cpu s / image",
    "PNG ms / image",
    "ms to write an image's part",
)
SCHEMA = "sdopt-quality-gpus/1"
GOALS = {1: 1.0, 2: 1.9}
EFFICIENCY = 0.925
"""Of more than two: 3.7 times with four."""
MOST_THREADS = 4
TRIAL = "--source embedded --levels turbo --steps 2 --scenes 128"
"""What can be run without a GPU."""
UNKNOWN = {"images_per_s": None, "images_per_s_of_each": None}


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


def check_gpus(processes: int, source: str, trial: str) -> list[str]:
    """The names of the GPUs, none for a trial on a CPU. Raises SdoptError if there are too few."""
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if processes < 1:
        raise SdoptError(f"--processes is {processes}; give 1 or more")
    if not there and source != "embedded":
        raise SdoptError(
            f"{processes} GPUs were asked for, and there is none here; run it on a host with "
            f"{processes}, or try it on this CPU: {trial}"
        )
    if 0 < there < processes:
        raise SdoptError(
            f"{processes} GPUs were asked for, and there are {there} here; give "
            f"--processes {there}, or run it on a host with {processes}"
        )
    return [torch.cuda.get_device_name(number) for number in range(min(there, processes))]


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
    check_gpus(options.processes, options.source, TRIAL)
    launch(options.processes, [SCALING, *_scaling_arguments(options)], options)
    content = scaled(options.out, options.processes)
    write_whole(options.json, json.dumps(content, indent=1).encode() + b"\n")
    lines = scaling_table(content["rows"])
    if options.page:
        write_table(options.page, lines, "quality-scaling")
    return lines


def scaled(out: Path, processes: int) -> dict[str, Any]:
    """What the runs of `scaling` that have ended found, a row for each level of each."""
    files = {count: out / f"{SCALING}-{count}" / JSON for count in counts_of(processes)}
    summaries = {count: read_summary(file) for count, file in files.items() if file.exists()}
    rows = []
    for count, summary in summaries.items():
        for row in rates(summary):
            # A launch that went on may have had too little left for all processes.
            whole = row["processes"] == count
            rows.append(row if whole else {**row, "processes": count, **UNKNOWN})
    add_factors(rows)
    return {
        "schema": SCHEMA,
        "run": next((summary["run"] for summary in summaries.values()), {}),
        "goal": goal_of(processes),
        "cores": len(os.sched_getaffinity(0)),
        "rows": rows,
    }


def goal_of(processes: int) -> float:
    """How many times one process's rate so many should reach."""
    return GOALS.get(processes, EFFICIENCY * processes)


def scaling_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A Markdown table."""
    return markdown_table(HEADINGS, [_cells(row) for row in rows])


def _scaling_arguments(options: argparse.Namespace) -> list[str]:
    given = ["--source", options.source, "--captions", str(options.captions)]
    given += ["--levels", *options.levels]
    return [*given, "--scenes", str(options.scenes), *_steps(options)]


def _steps(options: argparse.Namespace) -> list[str]:
    return ["--steps", str(options.steps)] if options.steps else []


def rates(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each level."""
    return [
        {
            "level": level,
            **{key: told["rate"][key] for key in ("processes", "images_per_s")},
            "images_per_s_of_each": told["rate"].get("images_per_s_of_each"),
            "host": told["rate"].get("host"),
        }
        for level, told in summary["levels"].items()
    ]


def add_factors(rows: Sequence[dict[str, Any]]) -> None:
    """How many times as fast as one process each row is, all told and for each process."""
    alone = {row["level"]: row["images_per_s"] for row in rows if row["processes"] == 1}
    for row in rows:
        one, rate = alone.get(row["level"]), row["images_per_s"]
        row["factor"] = factor = rate / one if rate and one else None
        row["efficiency"] = factor / row["processes"] if factor else None


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    host, each = row.get("host") or {}, row.get("images_per_s_of_each") or ()
    rate, *figures = (
        (row["images_per_s"], 1, ".2f"),
        (row["factor"], 1, ".2f"),
        (row.get("efficiency"), 1, ".3f"),
        (host["cpu_s"] + host["scorers_cpu_s"] if host else None, 1, ".3f"),
        (host.get("png_s"), 1e3, ".1f"),
        (host.get("write_s"), 1e3, ".2f"),
    )
    return (
        f"`{row['level']}`",
        str(row["processes"]),
        _figure(*rate),
        ", ".join(_figure(one, 1, ".2f") for one in each) or "-",
        *(_figure(*figure) for figure in figures),
    )


def _figure(value: float | None, times: float, form: str) -> str:
    return "-" if value is None else f"{times * value:{form}}"


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
    add("--levels", nargs="+", default=SCALED, help=f"of scaling ({' '.join(SCALED)})")
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
