"""How much of the engine the service passes on: `python -m studies.service_load --json load.json`.

The engine is measured first, alone, in a process of its own; then `sdopt serve` is started and
asked by so many clients at once, each of which sends its next request when it has its answer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from sdopt.bench.report.results import markdown_table, write_table
from sdopt.errors import SdoptError
from sdopt.util.children import python_path
from sdopt.util.files import read_json, write_whole
from studies.service_clients import Load, Memory, Served, generated_alike, served, under_load

SCHEMA = "sdopt-service-load/1"
TARGET = 0.95
GROWTH_LIMIT_MIB = 24.0
"""Of a process, from a fifth of the images to the end."""
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
PROMPT = "a large red star at the center on a blue background"
"""That every source can generate, the embedded one too."""


def engine_rates(options: argparse.Namespace) -> dict[str, Any]:
    """Images a second of the bare pipeline by batch size, and what they were measured on."""
    from sdopt.bench.measure import rounds_of
    from sdopt.bench.session import RunContext, Settings
    from sdopt.levels import get_level
    from sdopt.pipelines.pipeline import build
    from sdopt.util.progress import Progress

    settings = Settings(source=options.source, baselines_root=Path("baselines"))
    run = RunContext(settings=settings, progress=Progress(sys.stderr))
    pipeline = build(run.source, get_level(options.level), run.device)
    sides = _sides(options.size) or (run.source.size_px, run.source.size_px)
    given = {"width": sides[0], "height": sides[1], "output_type": "np"}
    given |= {"num_inference_steps": options.steps} if options.steps else {}
    rates = {}
    for images in sorted({min(count, options.max_batch) for count in options.clients}):

        def call(images: int = images) -> object:
            import torch

            seeds = [torch.Generator().manual_seed(seed) for seed in range(images)]
            texts = {"prompt": [PROMPT] * images, "negative_prompt": [""] * images}
            return pipeline(**texts, generator=seeds, **given)

        rounds = rounds_of(call, run.device)
        rates[str(images)] = 1e3 * images / median(rounds)
    return {"made_on": dict(run.made_on()), "images_per_s": rates}


def _sides(size: str | None) -> tuple[int, int] | None:
    if size is None:
        return None
    width, _, height = size.partition("x")
    return int(width), int(height)


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
        "--wait": options.wait,
        "--sizes": options.size,
    }
    for name, value in given.items():
        command += [name, str(value)] if value is not None else []
    return command


def row_of(load: Load, engine: float | None) -> dict[str, Any]:
    """Of one number of clients; the engine makes as many at once, up to the largest batch."""
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
    rows = []
    body = {"prompt": PROMPT}
    body |= {"num_inference_steps": options.steps} if options.steps else {}
    environment = {**_environment(), "PYTHONPATH": python_path()}
    with served(service_command(options), environment, options.timeout) as service:
        alike = generated_alike(service, body, options.max_batch)
        for clients in options.clients:
            print(f"{clients} clients ...", file=sys.stderr, flush=True)
            load = under_load(service, body, clients, options.images, options.timeout)
            rows.append(row_of(load, rates.get(str(min(clients, options.max_batch)))))
        memory = _memory(service)
    return {
        "schema": SCHEMA,
        "made_on": engine["made_on"] if engine else {},
        "options": {
            name: value
            for name, value in vars(options).items()
            if name not in ("json", "page", "mark")
        },
        "rows": rows,
        "alike": alike,
        "memory": [asdict(one) for one in memory],
        "exit_code": service.exit_code,
        "faults": faults(rows, memory, options.target),
    }


def _memory(service: Served) -> list[Memory]:
    return [one for one in service.memory.values() if one.samples_mib]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m studies.service_load", description=__doc__)
    parser.add_argument("--level", default="turbo")
    parser.add_argument("--source", default="auto", help="weights, as --sdopt-source")
    parser.add_argument("--clients", type=_numbers, default=[1, 2, 4, 8], metavar="N,...")
    parser.add_argument("--images", type=int, default=200, help="for each number of clients")
    parser.add_argument("--size", metavar="WxH", help="(default: the source's)")
    parser.add_argument("--steps", type=int, help="(default: the level's)")
    parser.add_argument("--devices", default="auto")
    parser.add_argument("--max-batch", type=int, default=4)
    parser.add_argument("--wait", type=float, default=10.0, help="ms")
    parser.add_argument("--target", type=float, default=TARGET, help="share of the engine; 0 any")
    parser.add_argument("--timeout", type=float, default=540.0, help="s, for each part")
    parser.add_argument("--no-engine", action="store_true", help="measure the service alone")
    parser.add_argument("--engine-alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="file to write everything into")
    parser.add_argument("--show", action="store_true", help="measure nothing: what --json holds")
    parser.add_argument("--page", type=Path, help="page to write the table into")
    parser.add_argument("--mark", default="service-load", help="name of the page's marks for it")
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
        found = read_json(options.json) if options.show else measure(options, given)
        lines = told(found)
        if options.json and not options.show:
            write_whole(options.json, json.dumps(found, indent=1).encode() + b"\n")
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
