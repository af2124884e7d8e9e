"""GPU figures of evaluations: `python -m studies.quality_gpus scaling`, then `lossy`.

On a host with two GPUs, from the root of a clone. Both end with a table, write JSON, and go on
where they stopped if they are run again.

- `scaling`: the 500 captions on `sd15-random` by `turbo` and `final`, first with one GPU, then with
  `--processes` of them (2). Images a second of each, steady, and the factor; the goal is 1.9.
- `lossy`: 2,000 scenes of `embedded`, every lossy level against the same without the loss, at
  guidance 3.0 and 7.5, in one launch. `python -m studies.quality SUMMARY --page PAGE` makes the page
  of each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdopt.bench.evaluation.summary import JSON, table
from sdopt.bench.report.results import markdown_table, write_table
from sdopt.errors import SdoptError, WorkerError
from sdopt.util.children import python_path
from sdopt.util.files import write_whole
from studies.quality import read_summary
from studies.quality_runs import LOSSY, kept

SCALED = ("turbo", "final")
HEADINGS = ("level", "processes", "images / s", "times one process")
SCHEMA = "sdopt-quality-gpus/1"
GOAL = 1.9


def command(processes: int, module: str, arguments: Sequence[str]) -> list[str]:
    """As the documentation has it: Accelerate starts the processes; on a CPU torchrun does.

    Port 0 is one that is free.
    """
    import torch

    several = ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else []
    launch = ["accelerate.commands.launch", *several, "--num_processes", str(processes)]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    if not torch.cuda.is_available():
        launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, "-m", *launch, "-m", module, *arguments]


def launch(processes: int, module: str, out: Path, *arguments: str) -> None:
    """Run it with that many processes. Raises WorkerError if it does not end well."""
    given = command(processes, module, [*arguments, "--out", str(out)])
    env = {**os.environ, "PYTHONPATH": python_path(), "TRANSFORMERS_VERBOSITY": "error"}
    began = time.monotonic()
    print(f"{out}: {' '.join(given)}", file=sys.stderr, flush=True)
    done = subprocess.run(given, env=env, check=False)
    print(f"{out}: {time.monotonic() - began:.0f} s in all", file=sys.stderr, flush=True)
    if done.returncode:
        raise WorkerError(
            f"the evaluation in {out} ended with {done.returncode}; see above, and run this again: "
            "it goes on where it stopped"
        )


def scaling(options: argparse.Namespace) -> list[str]:
    """Rates with one process and with several, as rows; written as JSON."""
    first, second = SCALED
    given = ["--reference", first, "--levels", second, "--source", options.source, "--part", "16"]
    if options.steps:
        given += ["--steps", str(options.steps)]
    rows = []
    for processes in (1, options.processes):
        out = options.out / f"scaling-{processes}"
        launch(processes, "sdopt.evaluate", out, *given, *options.prompts.split())
        summary = read_summary(out / JSON)
        rows += rates(summary)
    add_factors(rows)
    content = {"schema": SCHEMA, "run": summary["run"], "goal": GOAL, "rows": rows}
    write_whole(options.json, json.dumps(content, indent=1).encode() + b"\n")
    lines = markdown_table(HEADINGS, [_cells(row) for row in rows])
    if options.page:
        write_table(options.page, lines, "quality-scaling")
    return lines


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
    given = ["--keep", str(keep), "--scenes", str(options.scenes), "--batch", str(options.batch)]
    if options.steps:
        given += ["--steps", str(options.steps)]
    launch(options.processes, "studies.quality_runs", options.out, *given)
    lines: list[str] = []
    for one in LOSSY:
        file = kept(keep, one.name)
        lines += [f"{one.name}: {file}", "", *table(read_summary(file)), ""]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the two, print its table; 2 if an evaluation fails."""
    parser = argparse.ArgumentParser(prog="python -m studies.quality_gpus", description=__doc__)
    parser.add_argument("what", choices=("scaling", "lossy"))
    add = parser.add_argument
    add("--processes", type=int, default=2, help="GPUs of this host (2)")
    add("--out", type=Path, default=Path("build/quality"), help="folder of results")
    add("--json", type=Path, default=Path("build/quality/scaling.json"), help="file to write")
    add("--source", default="sd15-random", help="of scaling (sd15-random)")
    add("--prompts", default="--prompts captions", help="of scaling, as options of the evaluation")
    add("--page", type=Path, help="page to write the table of scaling into")
    add("--scenes", type=int, default=2000, help="of lossy (2000)")
    add("--batch", type=int, default=32, help="most images at once, of lossy (32)")
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
