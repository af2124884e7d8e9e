"""What the front of `sdopt serve` takes of its host: `python -m studies.service_front`.

The workers generate nothing: a batch takes `--ms` and is noise, which compresses worst. Requests,
batches, PNGs and answers are real. So a front can be given more workers than there are GPUs. Its
event loop is one thread, so a second of one core is its limit; its other threads encode.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdopt.bench.report.results import markdown_table, write_table
from sdopt.errors import SdoptError
from sdopt.service import server
from sdopt.service.queueing import Kind
from sdopt.service.settings import Facts, Settings, Shape
from sdopt.service.worker import Finish, Pixels, Wanted
from sdopt.util.children import python_path
from sdopt.util.files import read_json, write_whole
from studies.service_clients import LOOP, served, under_load

SCHEMA = "sdopt-service-front/1"
MARK = "service-front"
MAX_BATCH = 4
SIZE_PX = 512
IMAGES_A_CLIENT = 8
TIMEOUT_S = 300.0
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


def serve(options: argparse.Namespace) -> int:
    """The service, in this process."""
    settings = Settings(
        port=0,
        source=str(options.ms),
        devices=("cpu",) * options.workers,
        max_batch=MAX_BATCH,
        max_queue=options.clients,
        maker="studies.service_front:load",
    )
    return server.run(settings, lambda url, _: print(f"listening on {url}", flush=True))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One row. Raises SdoptError if an answer was lost."""
    given = {"--workers": options.workers, "--clients": options.clients, "--ms": options.ms}
    command = [sys.executable, "-m", "studies.service_front", "--serve"]
    for name, value in given.items():
        command += [name, str(value)]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    images = max(options.images, IMAGES_A_CLIENT * options.clients)
    with served(command, environment, TIMEOUT_S) as service:
        under_load(service, {"prompt": "warm"}, options.clients, 2 * options.clients, TIMEOUT_S)
        before = service.cpu_s()
        seen = under_load(service, {"prompt": "noise"}, options.clients, images, TIMEOUT_S)
        after = service.cpu_s()
    if seen.lost:
        raise SdoptError(f"{seen.lost} of {images} requests were lost: {', '.join(seen.errors)}")
    return {
        "workers": options.workers,
        "clients": options.clients,
        "batch_ms": options.ms,
        "workers_images_per_s": options.workers * MAX_BATCH * 1e3 / options.ms,
        "images_per_s": seen.images_per_s,
        "cpu_s_per_image": {name: (after[name] - before[name]) / images for name in after},
    }


def told(found: Mapping[str, Any]) -> list[str]:
    """The table, and what the event loop alone would allow."""
    rows = found["rows"]
    lowest, highest = (of(row["cpu_s_per_image"][LOOP] for row in rows) for of in (min, max))
    return [
        *markdown_table(HEADINGS, [_cells(row) for row in rows]),
        "",
        f"{found['cores']} cores, {SIZE_PX} x {SIZE_PX}. The event loop alone would allow "
        f"{1 / highest:.0f} to {1 / lowest:.0f} images a second.",
    ]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    host = row["cpu_s_per_image"]
    return (
        str(row["workers"]),
        str(row["clients"]),
        f"{row['workers_images_per_s']:.0f}",
        f"{row['images_per_s']:.1f}",
        *(f"{1e3 * host[name]:.2f}" for name in (LOOP, "front", "clients")),
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too few; give 1 or more")
    return value


def _milliseconds(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 1e4:
        raise argparse.ArgumentTypeError(f"{text} ms is no batch's time; give 1 to 10000")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m studies.service_front", description=__doc__)
    add = parser.add_argument
    add("--workers", type=_positive, nargs="+", default=[1, 2, 4], help="(1 2 4)")
    add("--clients", type=_positive, default=16, help="of each worker (16)")
    add("--ms", type=_milliseconds, default=80.0, help="a batch of 4 takes (80: turbo on an H200)")
    add("--images", type=_positive, default=400, help="at least, for each row (400)")
    add("--json", type=Path, help="file to write the rows into")
    add("--show", action="store_true", help="measure nothing: what --json holds")
    add("--page", type=Path, help="page to write the table into")
    add("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each number of workers and print the table; 2 for a mistake or a lost answer."""
    options = _parser().parse_args(arguments)
    if options.serve:
        return serve(_of(options, options.workers[0], options.clients))
    try:
        if options.show and options.json is None:
            raise SdoptError("--show needs --json FILE, what to show")
        found = read_json(options.json) if options.show else _measured(options)
        lines = told(found)
        if options.json and not options.show:
            write_whole(options.json, json.dumps(found, indent=1).encode() + b"\n")
        if options.page:
            write_table(options.page, lines, MARK)
    except (SdoptError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for workers in options.workers:
        print(f"{workers} workers ...", file=sys.stderr, flush=True)
        rows.append(measure(_of(options, workers, workers * options.clients)))
    return {"schema": SCHEMA, "cores": len(os.sched_getaffinity(0)), "rows": rows}


def _of(options: argparse.Namespace, workers: int, clients: int) -> argparse.Namespace:
    """The options of one row: its own workers, and the clients of all of them."""
    return argparse.Namespace(**{**vars(options), "workers": workers, "clients": clients})


if __name__ == "__main__":
    sys.exit(main())
