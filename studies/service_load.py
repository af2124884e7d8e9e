"""How much of the engine the service passes on: `python -m studies.service_load --json load.json`.

The engine is measured first, alone, in a process of its own; then `sdopt serve` is started and
asked by so many clients at once, each of which sends its next request when it has its answer.

With several devices, `sdopt serve` has a worker on each; the engine, measured on one of them,
counts as often as devices can work for so many clients.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdopt.bench.report.results import markdown_table, write_table
from sdopt.errors import SdoptError
from sdopt.util.children import python_path
from sdopt.util.files import write_whole
from studies.service_clients import Load, Memory, Served, generated_alike, served, under_load
from studies.service_engine import PROMPT, batch_of, device_count, devices_of, engine_rates
from studies.stored import read_stored

SCHEMA = "sdopt-service-load/1"
TARGET = 0.95
IMAGES_A_CLIENT = 8
"""At least: the first and the last of each are left out of the rate."""
GROWTH_LIMIT_MIB = 24.0
"""Of a process, from a fifth of the last load's images to the end."""
MOST_WAITING = 64
"""As of `sdopt serve`; more clients need more."""
HEADINGS = (
    "clients",
    "images",
    "lost",
    "service, images / s",
    "engine, images / s",
    "share",
    "p50, ms",
    "p95, ms",
    "images a batch",
)


def _engine_in_a_process(options: argparse.Namespace, arguments: Sequence[str]) -> Any:
    """So that its memory is free again before the service starts."""
    command = (sys.executable, "-m", "studies.service_load", *arguments, "--engine-alone")
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=options.timeout,
        env={**_environment(), "PYTHONPATH": python_path()},
    )
    if done.returncode != 0:
        raise SdoptError(f"the engine could not be measured: exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def _environment() -> dict[str, str]:
    import os

    return dict(os.environ)


def service_command(options: argparse.Namespace) -> list[str]:
    """How the service is started; port 0 takes a free one."""
    command = [sys.executable, "-m", "sdopt.cli", "serve", "--port", "0"]
    given = {
        "--level": options.level,
        "--source": options.source,
        "--devices": options.devices,
        "--max-batch": options.max_batch,
        "--max-queue": max(MOST_WAITING, *options.clients),
        "--wait": options.wait,
        "--sizes": options.size,
    }
    for name, value in given.items():
        command += [name, str(value)] if value is not None else []
    return command


def row_of(load: Load, engine: float | None, devices: int = 1) -> dict[str, Any]:
    """Of one number of clients; the engine makes as many at once, up to the largest batch.

    It counts for each device that has a client.
    """
    engine = engine and engine * min(devices, load.clients)
    share = load.images_per_s / engine if engine else None
    return {**asdict(load), "engine_images_per_s": engine, "share": share}


def load_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A Markdown table, a line for each number of clients."""
    return markdown_table(HEADINGS, [_cells(row) for row in rows])


def told(found: Mapping[str, Any]) -> list[str]:
    """The table, and below it memory and bits."""
    memory = [
        f"{one['name']} {one['begin_mib']:.1f} to {one['end_mib']:.1f} MiB"
        for one in found["memory"]
    ]
    alike = [f"{name}: {value}" for name, value in found["alike"].items()]
    return [
        *load_table(found["rows"]),
        "",
        f"Resident memory, from a fifth of the images to the end: {', '.join(memory)}. "
        f"An image again: {'; '.join(alike)}.",
    ]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    engine, share = row["engine_images_per_s"], row["share"]
    return (
        str(row["clients"]),
        str(row["answered"]),
        str(row["lost"]),
        f"{row['images_per_s']:.2f}",
        f"{engine:.2f}" if engine else "-",
        f"{100 * share:.1f} %" if share else "-",
        f"{row['p50_ms']:.1f}",
        f"{row['p95_ms']:.1f}",
        f"{row['images_a_batch']:.2f}",
    )


def faults(rows: Sequence[dict[str, Any]], memory: Sequence[Memory], target: float) -> list[str]:
    """What the service has to be mended for."""
    found = [
        f"{row['clients']} clients: {row['lost']} requests were lost" for row in rows if row["lost"]
    ]
    found += [
        f"{row['clients']} clients: {100 * row['share']:.1f} % of the engine, target "
        f"{100 * target:g} %"
        for row in rows
        if row["share"] is not None and row["share"] < target
    ]
    found += [
        f"{one.name}: memory grew by {one.growth_mib:.1f} MiB, at most {GROWTH_LIMIT_MIB:g}"
        for one in memory
        if one.growth_mib > GROWTH_LIMIT_MIB
    ]
    return found


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """The engine, then the service under each load."""
    engine = None if options.no_engine else _engine_in_a_process(options, arguments)
    rates = engine["images_per_s"] if engine else {}
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "made_on": engine["made_on"] if engine else {},
        "options": {
            name: value
            for name, value in vars(options).items()
            if name not in ("json", "page", "mark")
        },
        "rows": [],
        "alike": {},
        "memory": [],
        "exit_code": None,
        "faults": [],
    }
    body = {"prompt": PROMPT}
    body |= {"num_inference_steps": options.steps} if options.steps else {}
    environment = {**_environment(), "PYTHONPATH": python_path()}
    with served(service_command(options), environment, options.timeout) as service:
        found["alike"] = generated_alike(service, body, options.max_batch)
        for clients in options.clients:
            print(f"{clients} clients ...", file=sys.stderr, flush=True)
            row = _loaded(service, body, clients, options, rates)
            found["rows"].append(row)
            _keep(options.json and so_far(options.json), found)
        memory = _memory(service)
    return {
        **found,
        "memory": [asdict(one) for one in memory],
        "exit_code": service.exit_code,
        "faults": faults(found["rows"], memory, options.target),
    }


def _loaded(
    service: Served,
    body: Mapping[str, Any],
    clients: int,
    options: argparse.Namespace,
    rates: Mapping[str, float],
) -> dict[str, Any]:
    """A row, with the processor time that an image took of front, workers and clients."""
    before = service.cpu_s()
    images = max(options.images, IMAGES_A_CLIENT * clients)
    load = under_load(service, body, clients, images, options.timeout)
    after = service.cpu_s()
    row = row_of(load, rates.get(str(batch_of(clients, options))), device_count(options))
    host = {name: (after[name] - before[name]) / load.answered for name in after}
    return {**row, "cpu_s_per_image": host}


def so_far(file: Path) -> Path:
    """Beside the file that is written at the end: what there is already."""
    return file.with_suffix(".so-far.json")


def _keep(file: Path | None, found: Mapping[str, Any]) -> None:
    if file:
        write_whole(file, json.dumps(found, indent=1).encode() + b"\n")


def _memory(service: Served) -> list[Memory]:
    return [one for one in service.memory.values() if one.samples_mib]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m studies.service_load", description=__doc__)
    add = parser.add_argument
    add("--level", default="turbo")
    add("--source", default="auto", help="weights, as --sdopt-source")
    add("--clients", type=_numbers, default=[1, 2, 4, 8], metavar="N,...")
    add("--images", type=int, default=200, help="for each number of clients")
    add("--size", metavar="WxH", help="(default: the source's)")
    add("--steps", type=int, help="(default: the level's)")
    add("--devices", type=devices_of, default="auto", help="as of sdopt serve, or how many")
    add("--max-batch", type=int, default=4)
    add("--wait", type=float, default=10.0, help="ms")
    add("--target", type=float, default=TARGET, help="share of the engine; 0 any")
    add("--timeout", type=float, default=540.0, help="s, for each part")
    add("--no-engine", action="store_true", help="measure the service alone")
    add("--engine-alone", action="store_true", help=argparse.SUPPRESS)
    add("--json", type=Path, help="file to write everything into")
    add("--show", action="store_true", help="measure nothing: what --json holds")
    add("--page", type=Path, help="page to write the table into")
    add("--mark", default="service-load", help="name of the page's marks for it")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 for a lost request, grown memory or a missed target, 2 for a mistake."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    try:
        if options.engine_alone:
            print(json.dumps(engine_rates(options)))
            return 0
        if options.show and options.json is None:
            raise SdoptError("--show needs --json FILE, what to show")
        found = (
            read_stored(options.json, SCHEMA, "studies.service_load")
            if options.show
            else measure(options, given)
        )
        lines = told(found)
        if options.json and not options.show:
            _keep(options.json, found)
            so_far(options.json).unlink(missing_ok=True)
        if options.page:
            write_table(options.page, lines, options.mark)
    except (SdoptError, OSError, subprocess.TimeoutExpired) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    for fault in found["faults"]:
        print(f"FAULT: {fault}")
    return 1 if found["faults"] or found["exit_code"] else 0


if __name__ == "__main__":
    sys.exit(main())
