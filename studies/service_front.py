"""What the front of `sdopt serve` takes of its host: `python -m studies.service_front`.

The workers generate nothing: a batch takes `--ms` and is noise, which compresses worst. Requests,
batches, PNGs and answers are real. So a front can be given more workers than there are GPUs. Its
event loop is one thread, so a second of one core is its limit; its other threads encode.
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

import numpy as np

from sdopt.bench.report.results import filled, markdown_table, read_page, write_table
from sdopt.errors import SdoptError
from sdopt.service import server
from sdopt.service.connection import most_connections
from sdopt.service.queueing import Kind
from sdopt.service.settings import Facts, Settings, Shape
from sdopt.service.worker import Finish, Pixels, Wanted
from sdopt.util.children import python_path
from sdopt.util.files import write_whole
from sdopt.util.text import counted
from studies.service_clients import LOOP, served, under_load
from studies.stored import read_stored

SCHEMA = "sdopt-service-front/1"
MARK = "service-front"
MAX_BATCH = 4
SIZE_PX = 512
IMAGES_A_CLIENT = 8
MOST_IMAGES = 10**6
STARTS_S = 120.0
SLOWER = 10
"""Than the workers: a load that takes longer than so many times as long is given up."""
HEADINGS = (
    "workers",
    "clients",
    "their images / s",
    "images / s",
    "event loop, cpu ms / image",
    "front, cpu ms / image",
    "clients, cpu ms / image",
)


class Waiting:
    """A worker's generator that waits so many ms for each batch, whatever is asked for."""

    def __init__(self, batch_ms: float) -> None:
        self.batch_s = batch_ms / 1e3
        shape = (SIZE_PX, SIZE_PX, 3)
        self.noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        self.facts = Facts(
            source="none",
            embedded=False,
            size_px=SIZE_PX,
            guidance_scale=7.5,
            steps=20,
            multiple_px=8,
            compiles=False,
            device="none",
        )

    def warm(self, shapes: Sequence[Shape], max_batch: int, memory: Pixels) -> float:
        """Images a second."""
        return max_batch / self.batch_s

    def begin(self, kind: Kind, wanted: Sequence[Wanted]) -> Finish:
        """What `finish` ends, as a GPU's stream does: one batch after the other."""

        def finish() -> Sequence[bool]:
            time.sleep(self.batch_s)
            for one in wanted:
                one.pixels[:] = self.noise
            return [True] * len(wanted)

        return finish


def load(level: str, source: str, device: str | None) -> Waiting:
    """What a worker makes; the source says the milliseconds of a batch."""
    return Waiting(float(source))


def serve(workers: int, clients: int, batch_ms: float) -> int:
    """The service, in this process."""
    settings = Settings(
        port=0,
        source=str(batch_ms),
        devices=("cpu",) * workers,
        max_batch=MAX_BATCH,
        max_queue=clients,
        maker="studies.service_front:load",
    )
    return server.run(settings, lambda url, _: print(f"listening on {url}", flush=True))


def measure(workers: int, clients_each: int, batch_ms: float, least: int) -> dict[str, Any]:
    """One row, of `least` images or more. Raises SdoptError if an answer was lost."""
    clients = workers * clients_each
    rate = workers * min(MAX_BATCH, clients_each) * 1e3 / batch_ms
    command = [sys.executable, "-m", "studies.service_front", "--serve"]
    command += ["--workers", str(workers), "--clients", str(clients), "--ms", str(batch_ms)]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    images = max(least, IMAGES_A_CLIENT * clients)
    limit_s = STARTS_S + SLOWER * images / rate
    with served(command, environment, STARTS_S) as service:
        under_load(service, {"prompt": "warm"}, clients, 2 * clients, limit_s)
        before = service.cpu_s()
        seen = under_load(service, {"prompt": "noise"}, clients, images, limit_s)
        after = service.cpu_s()
    if seen.lost:
        raise SdoptError(f"{seen.lost} of {images} requests were lost: {', '.join(seen.errors)}")
    return {
        "workers": workers,
        "clients": clients,
        "batch_ms": batch_ms,
        "workers_images_per_s": rate,
        "images_per_s": seen.images_per_s,
        "cpu_s_per_image": {name: (after[name] - before[name]) / images for name in after},
    }


def told(found: Mapping[str, Any]) -> list[str]:
    """The table, and what the event loop alone would allow."""
    rows = found["rows"]
    lines = markdown_table(HEADINGS, [_cells(row) for row in rows])
    line = f"{found['cores']} cores, {SIZE_PX} x {SIZE_PX}."
    most = max((row["cpu_s_per_image"][LOOP] for row in rows), default=0)
    if most > 0:  # in a short run the clock may not have ticked
        line += f" The event loop alone would allow {1 / most:.0f} images a second or more."
    return [*lines, "", line]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    host = row["cpu_s_per_image"]
    return (
        str(row["workers"]),
        str(row["clients"]),
        f"{row['workers_images_per_s']:.0f}",
        f"{row['images_per_s']:.1f}",
        *(f"{1e3 * host[name]:.2f}" for name in (LOOP, "front", "clients")),
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_IMAGES:
        raise argparse.ArgumentTypeError(f"{text} is no count; give 1 to {MOST_IMAGES}")
    return int(text)


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 1e4:
        raise argparse.ArgumentTypeError(f"{text} ms is no batch's time; give 1 to 10000")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m studies.service_front", description=__doc__)
    add = parser.add_argument
    add("--workers", type=_count, nargs="+", default=[1, 2, 4], help="(1 2 4)")
    add("--clients", type=_count, default=16, help="of each worker (16)")
    add("--ms", type=_milliseconds, default=80.0, help="a batch of 4 takes (80: turbo on an H200)")
    add("--images", type=_count, default=400, help="at least, for each row (400)")
    add("--json", type=Path, help="file to write the rows into")
    add("--show", action="store_true", help="measure nothing: what --json holds")
    add("--page", type=Path, help="page to write the table into")
    add("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each number of workers and print the table; 2 for a mistake or a lost answer."""
    options = _parser().parse_args(arguments)
    if options.serve:
        return serve(options.workers[0], options.clients, options.ms)
    code, rows = 0, list[dict[str, Any]]()
    found: dict[str, Any] = {"schema": SCHEMA, "cores": len(os.sched_getaffinity(0)), "rows": rows}
    try:
        check(options)
        if options.show:
            found = read_stored(options.json, SCHEMA, "studies.service_front")
        else:
            _measured(options, found)
        if options.page:
            write_table(options.page, told(found), MARK)
    except (SdoptError, OSError, subprocess.TimeoutExpired) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    if found["rows"]:  # those of before a fault count
        print("\n".join(told(found)))
    return code


def check(options: argparse.Namespace) -> None:
    """Raise SdoptError for what would fail only after minutes of measuring."""
    workers, each = max(options.workers), options.clients
    most = most_connections(workers)
    if workers * each > most:
        raise SdoptError(
            f"{counted(workers, 'worker')} with {counted(each, 'client')} each are more than the "
            f"{most} connections of a service; give fewer --workers or --clients"
        )
    if options.show and options.json is None:
        raise SdoptError("--show needs --json FILE, what to show")
    if options.json and options.json.is_dir():
        raise SdoptError(f"--json {options.json} is a folder; name a file")
    if options.page:
        filled(options.page, read_page(options.page), [], MARK)


def _measured(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Add a row for each number of workers, and keep it as soon as it is there."""
    for workers in options.workers:
        print(f"{counted(workers, 'worker')} ...", file=sys.stderr, flush=True)
        found["rows"].append(measure(workers, options.clients, options.ms, options.images))
        if options.json:
            write_whole(options.json, json.dumps(found, indent=1).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
