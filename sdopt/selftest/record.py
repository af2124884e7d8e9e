"""Record pairs of unchanged processes, and of ones with known slowdowns inside.

    python -m sdopt.selftest.record --level final --pairs 10 --faults loop:0.03 --out samples.json

Both sides of a pair are fresh processes of this working tree. After the unchanged rounds, the
head's carries each fault in turn. The file is written whole after each pair;
`sdopt.selftest.rates` reads it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import sdopt
from sdopt.ab.cleanup import Janitor, janitor
from sdopt.ab.process import Worker, running
from sdopt.ab.result import Sides, Spec
from sdopt.ab.rounds import BLOCK_ROUNDS, BLOCKS, Side, in_order, schedule
from sdopt.baselines import write_whole
from sdopt.errors import SdoptError
from sdopt.report.progress import Progress

UNCHANGED = "none"


def record(
    spec: Spec, level: str, faults: Sequence[str], path: Path, progress: Progress
) -> list[dict[str, Any]]:
    """Record `spec.max_pairs` pairs of one level; every sample is in the file once it is taken."""
    samples: list[dict[str, Any]] = []
    with janitor() as keeper:
        for number in range(1, spec.max_pairs + 1):
            with progress.during(f"pair {number} of {spec.max_pairs}"):
                samples += _pair(spec, level, faults, number, keeper)
            content = {"schema": "sdopt-samples/1", "run": {"pairs": samples}}
            write_whole(path, json.dumps(content).encode())
    return samples


def _pair(
    spec: Spec, level: str, faults: Sequence[str], number: int, keeper: Janitor
) -> list[dict[str, Any]]:
    order = in_order("base" if number % 2 else "head")
    with ExitStack() as stack:
        workers = {side: stack.enter_context(running(spec, side, keeper)) for side in order}
        hellos = {side: workers[side].ask("hello") for side in order}
        device = hellos["head"]["device"]
        for side in order:
            workers[side].ask("load", about=level, level=level)
        samples = []
        for fault in (UNCHANGED, *faults):
            workers["head"].ask("inject", about=level, fault=fault)
            rounds = _rounds(workers, order[0], device)
            peaks = {side: workers[side].ask("memory")["peak_allocated_mib"] for side in order}
            samples.append(
                {
                    "level": level,
                    "pair": number,
                    "first": order[0],
                    "fault": fault,
                    "device": device,
                    **{f"{side}_rounds_ms": rounds[side] for side in order},
                    **{f"{side}_peak_mib": peaks[side] for side in order},
                }
            )
        return samples


def _rounds(workers: Mapping[Side, Worker], first: Side, device: str) -> dict[Side, list[float]]:
    rounds: dict[Side, list[float]] = {side: [] for side in workers}
    for side in schedule(first, BLOCKS[device]):
        rounds[side] += workers[side].ask("rounds", count=BLOCK_ROUNDS[device])["ms"]
    return rounds


def main(arguments: Sequence[str] | None = None) -> int:
    """Record and say how far the unchanged pairs spread; 2 if a process failed."""
    parser = argparse.ArgumentParser(prog="python -m sdopt.selftest.record", description=__doc__)
    parser.add_argument("--level", default="final")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--faults", nargs="*", default=[], metavar="PLACE:SIZE")
    parser.add_argument("--source", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    tree = Path(sdopt.__file__).parents[1]
    spec = Spec(sides=Sides(base=tree, head=tree), source=options.source, max_pairs=options.pairs)
    try:
        samples = record(spec, options.level, options.faults, options.out, Progress(sys.stderr))
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for fault in dict.fromkeys(sample["fault"] for sample in samples):
        ratios = [
            median(sample["head_rounds_ms"]) / median(sample["base_rounds_ms"])
            for sample in samples
            if sample["fault"] == fault
        ]
        print(f"{fault}: head / base {', '.join(f'{ratio:.4f}' for ratio in ratios)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
