"""How far several GPUs of one host go: `python -m studies.four_gpus --json FILE --page PAGE`.

In one call of ten minutes at most: the evaluation by one process, two and all of them
(`studies.quality_gpus scaling`), then `sdopt serve` with a worker on each GPU behind one address
(`studies.service_load`), then with one worker, so that both have their factor. Each part has a
limit of its own, and FILE holds what it found as soon as that is there. The same command goes on
where it stopped. It ends with 1 if something is still missing, 2 for a mistake or a part that
failed; a missed goal is a result.

Without a GPU, to try it: `--source embedded --processes 2 --levels turbo --steps 2 --size 64x64`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from sdopt.bench.report.results import write_table
from sdopt.errors import SdoptError
from sdopt.util.children import python_path
from sdopt.util.files import read_json, write_whole
from studies.four_gpus_table import EVALUATION, ONE, SERVICE, shown
from studies.quality_gpus import check_gpus, scaled
from studies.quality_runs import SCALED, counts_of
from studies.service_load import so_far
from studies.stored import read_stored

SCHEMA = "sdopt-four-gpus/1"
MARK = "gpus-{}"
"""Of the block in a page that holds the tables of so many."""
LIMITS_S = {EVALUATION: 360.0, SERVICE: 150.0, ONE: 75.0}
TRIAL = "--source embedded --processes 2 --levels turbo --steps 2 --size 64x64"
"""What can be run without a GPU."""
LEAST_S = 20.0
"""A part is not begun with less."""
END_S = 30.0
"""What a launcher is given to end its processes."""
KEPT = ("processes", "source", "levels", "steps", "captions", "scenes", "clients", "images", "size")
"""Options that make it another run."""


@dataclass(kw_only=True)
class Run:
    """The options, what was found so far, and the time that is left."""

    options: argparse.Namespace
    found: dict[str, Any]
    until: float = field(default=0.0)
    failed: list[str] = field(default_factory=list)

    def keep(self, **found: Any) -> None:
        """As soon as it is there."""
        self.found |= found
        write_whole(self.options.json, json.dumps(self.found, indent=1).encode() + b"\n")

    def command(self, part: str, module: str, arguments: Sequence[str], result: Path) -> None:
        """Run a module within the part's limit and the whole one, for the file that it writes."""
        result.parent.mkdir(parents=True, exist_ok=True)
        result.unlink(missing_ok=True)
        limit_s = min(LIMITS_S[part], self.until - time.monotonic())
        if limit_s < LEAST_S:
            say(f"{part}: {max(0.0, limit_s):.0f} s are left, too few")
            return
        given = [sys.executable, "-m", module, *arguments, "--json", str(result)]
        say(f"{part}, at most {limit_s:.0f} s: {' '.join(given)}")
        code = ended_within(given, limit_s)
        if code is None:
            say(f"{part}: ended after {limit_s:.0f} s; run this again, it goes on")
        elif not result.exists():  # with it, a code tells of faults that it holds
            self.failed.append(f"{part} ended with {code}; see above")


def say(line: str) -> None:
    """To whom waits."""
    print(line, file=sys.stderr, flush=True)


def ended_within(command: Sequence[str], limit_s: float) -> int | None:
    """Its exit code; None if it took longer, and was ended with all that it had started."""
    environment = {**os.environ, "PYTHONPATH": python_path()}
    process = subprocess.Popen(command, env=environment, stdout=2)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """The process and its children: launchers start them in sessions of their own."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        with suppress(psutil.Error):
            one.terminate()
    _, left = psutil.wait_procs(family, END_S)
    for one in left:
        with suppress(psutil.Error):
            one.kill()
    process.wait()


def begun(options: argparse.Namespace) -> Run:
    """New, or as `--json` holds it. Raises SdoptError for another run's."""
    gpus = check_gpus(options.processes, options.source, TRIAL)
    asked = json.loads(json.dumps({name: getattr(options, name) for name in KEPT}))
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "asked": asked,
        "gpus": gpus,
        "cores": len(os.sched_getaffinity(0)),
    }
    if options.json.exists():
        stored = read_json(options.json)
        if {name: stored.get(name) for name in found} != found:
            raise SdoptError(
                f"{options.json} holds another run or another machine's; name another --json and "
                "--out, or move it away"
            )
        found = stored
    return Run(options=options, found=found, until=time.monotonic() + 60 * options.minutes)


def evaluation(run: Run) -> None:
    """Rows of each number of processes; what ended before a limit counts."""
    options = run.options
    if EVALUATION not in missing(run):
        return
    given = ["scaling", "--processes", str(options.processes), "--source", options.source]
    given += ["--levels", *options.levels, "--captions", str(options.captions)]
    given += ["--scenes", str(options.scenes), *_given("--steps", options.steps)]
    given += ["--out", str(options.out)]
    run.command(EVALUATION, "studies.quality_gpus", given, options.out / "scaling.json")
    run.keep(evaluation=scaled(options.out, options.processes))


def service(run: Run) -> None:
    """Rows of each number of clients that are not there yet."""
    _served(run, SERVICE, run.options.processes, run.options.clients)


def service_of_one(run: Run) -> None:
    """With as many clients for its worker as each of several has at most: what the factor is of."""
    if run.options.processes > 1:
        _served(run, ONE, 1, [most_of_one(run.options)])


def most_of_one(options: argparse.Namespace) -> int:
    """Clients of one worker, if all have the same."""
    most: int = max(options.clients)
    return max(1, most // int(options.processes))


def _served(run: Run, part: str, devices: int, clients: Sequence[int]) -> None:
    options, before = run.options, run.found.get(part, {})
    rows = {row["clients"]: row for row in before.get("rows", ())}
    missing = [count for count in clients if count not in rows]
    if not missing:
        return
    file = options.out / f"{part.replace(' ', '-')}.json"
    so_far(file).unlink(missing_ok=True)
    given = ["--source", options.source, "--devices", str(devices), "--target", "0"]
    given += ["--clients", ",".join(map(str, missing)), "--images", str(options.images)]
    given += [*_given("--size", options.size), *_given("--steps", options.steps)]
    given += ["--no-engine"] if part == ONE else []
    run.command(part, "studies.service_load", given, file)
    there = file if file.exists() else so_far(file)
    if there.exists():
        told = read_json(there)
        rows |= {row["clients"]: row for row in told["rows"]}
        run.keep(**{part: {**told, "rows": [rows[count] for count in sorted(rows)]}})


def _given(name: str, value: object) -> list[str]:
    return [] if value is None else [name, str(value)]


def missing(run: Run) -> list[str]:
    """The parts of which something is not there yet."""
    options = run.options
    wanted = {EVALUATION: counts_of(options.processes), SERVICE: options.clients}
    if options.processes > 1:
        wanted[ONE] = [most_of_one(options)]
    there = {
        part: {
            row["processes" if part == EVALUATION else "clients"]
            for row in run.found.get(part, {}).get("rows", ())
        }
        for part in wanted
    }
    return [part for part, counts in wanted.items() if not there[part] >= set(counts)]


def told(run: Run) -> list[str]:
    """The tables of what is there; in the page too, which is so found wanting before it counts."""
    lines = shown(run.found)
    if run.options.page:
        write_table(run.options.page, lines, MARK.format(run.found["asked"]["processes"]))
    return lines


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m studies.four_gpus", description=__doc__)
    add = parser.add_argument
    add("--processes", type=int, default=4, help="GPUs of this host (4)")
    add("--json", type=Path, required=True, help="file of results; it goes on with it")
    add("--page", type=Path, help="page to write the tables into")
    add("--out", type=Path, default=Path("build/four-gpus"), help="folder of the evaluation")
    add("--show", action="store_true", help="measure nothing: what --json holds")
    add("--minutes", type=float, default=9.5, help="after which parts are ended (9.5)")
    add("--source", default="sd15-random", help="(sd15-random)")
    add("--levels", nargs="+", default=list(SCALED), help=f"evaluated ({' '.join(SCALED)})")
    add("--steps", type=int, help="of every level (their own), to try the command")
    add("--captions", type=int, default=500, help="(500, all)")
    add("--scenes", type=int, default=128, help="of --source embedded (128)")
    add("--clients", type=_numbers, default=[1, 4, 16, 64], metavar="N,...")
    add("--images", type=int, default=400, help="at least, for each number of clients (400)")
    add("--size", metavar="WxH", help="of the service (the source's)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, and print all that is there."""
    options = _parser().parse_args(arguments)
    try:
        if options.show:
            found = read_stored(options.json, SCHEMA, "studies.four_gpus")
            print("\n".join(told(Run(options=options, found=found))))
            return 0
        run = begun(options)
        lines = told(run)
        for part in (evaluation, service, service_of_one):
            part(run)
            lines = told(run)
    except (SdoptError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    left = missing(run)
    if left:
        say(f"missing yet: {', '.join(left)}; run this again, it goes on")
    for line in run.failed:
        say(f"error: {line}")
    return 2 if run.failed else int(bool(left))


if __name__ == "__main__":
    sys.exit(main())
