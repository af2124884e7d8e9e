"""Record pairs of unchanged processes, and of ones with known faults inside.

    python -m studies.power.record --level final --pairs 40 --at-once 8 \\
        --faults slowdowns memory --faults-per-pair 3 --minutes 9 --out samples.json

Both sides of a pair are fresh processes of this working tree; `--at-once` pairs load together and
are then measured one after the other. In each, base and head take turns, and the head generates
unchanged and with each fault of the pair's share: there and back again, so that all of them stand
equally far from the base's rounds. The file is written whole after each batch;
`studies.power.rates` reads it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import sdopt
from sdopt.bench.ab.cleanup import Janitor, janitor, without_git_variables
from sdopt.bench.ab.process import Start, spawned
from sdopt.bench.ab.result import Sides, Spec
from sdopt.errors import SdoptError
from sdopt.util.files import write_whole
from sdopt.util.progress import Progress
from studies.power.crew import loaded_pairs
from studies.power.forking import forking
from studies.power.shares import GROUPS, expanded, is_of_memory, share
from studies.power.turns import measured

SCHEMA = "sdopt-samples/2"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to record, in batches of `at_once` pairs.

    After the first one none begins that would not end by `minutes`. Unless the compile cache is
    warm, one process fills it before the others load. Each pair carries `per_pair` of the
    slowdowns and one of the faults of memory.
    """

    spec: Spec
    level: str
    faults: Sequence[str] = ()
    per_pair: int = 1
    at_once: int = 1
    first_pair: int = 1
    minutes: float = float("inf")
    warm_cache: bool = False
    forked: bool = False

    def batches(self) -> Iterator[list[int]]:
        """The numbers of the pairs in each batch, as long as there is time."""
        began, longest = time.monotonic(), 0.0
        end = self.first_pair + self.spec.max_pairs
        for start in range(self.first_pair, end, self.at_once):
            batch_began = time.monotonic()
            if longest and batch_began - began + longest > 60 * self.minutes:
                return
            yield list(range(start, min(start + self.at_once, end)))
            longest = max(longest, time.monotonic() - batch_began)

    def share(self, pair: int) -> tuple[list[str], list[str]]:
        """The pair's faults of time and of memory."""
        slow = [fault for fault in self.faults if not is_of_memory(fault)]
        large = [fault for fault in self.faults if is_of_memory(fault)]
        return share(slow, pair, self.per_pair), share(large, pair, 1)


def record(
    plan: Plan, path: Path, progress: Progress, made_by: dict[str, Any]
) -> list[dict[str, Any]]:
    """Record one level; every sample of a batch is in the file once that is measured."""
    samples: list[dict[str, Any]] = []
    identity: dict[str, Any] = {}
    with janitor() as keeper:
        start: Start = spawned
        if plan.forked:
            # What is imported once has to know by then whether there is anything to compile.
            spec = replace(plan.spec, compile_threads=1 if plan.warm_cache else None)
            with progress.during("importing once for all"):
                start = forking(spec)
        for numbers in plan.batches():
            samples += _batch(plan, numbers, keeper, progress, identity, start)
            run = {**identity, **made_by, "level": plan.level, "pairs": samples}
            write_whole(path, json.dumps({"schema": SCHEMA, "run": run}).encode())
    return samples


def _batch(
    plan: Plan,
    numbers: list[int],
    keeper: Janitor,
    progress: Progress,
    identity: dict[str, Any],
    start: Start,
) -> list[dict[str, Any]]:
    """Load the pairs, then measure them; the first process of all also says what it is."""
    name = f"pairs {numbers[0]} to {numbers[-1]}"
    samples = []
    with ExitStack() as stack:
        with progress.during(f"{name}: loading"):
            one_first = not (identity or plan.warm_cache)
            crew = loaded_pairs(
                plan.spec, plan.level, numbers, keeper, one_first=one_first, start=start
            )
            pairs = stack.enter_context(crew)
        if not identity:
            identity |= pairs[0].workers["head"].ask("identity")
        for pair in pairs:
            with progress.during(f"{name}: images of pair {pair.number}"):
                samples += measured(pair, plan.level, *plan.share(pair.number))
    return samples


def commit_at(tree: Path) -> str | None:
    """The commit of the tree, '+' behind it if something was changed; None where there is no git.

    Whoever records without git gives it on the command line.
    """
    words = ("git", "-C", str(tree), "describe", "--always", "--dirty=+", "--abbrev=12")
    try:
        said = subprocess.run(words, capture_output=True, text=True, env=without_git_variables())
    except FileNotFoundError:
        return None
    return said.stdout.strip() or None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m studies.power.record", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--level", default="final")
    parser.add_argument("--source", default="auto")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--at-once", type=int, default=1, help="pairs that load together (1)")
    parser.add_argument("--first-pair", type=int, default=1, help="to go on after another run (1)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end before that")
    parser.add_argument(
        "--faults",
        nargs="*",
        default=[],
        metavar="PLACE:SIZE",
        help=f"such as loop:0.03, or all {' or all '.join(GROUPS)}",
    )
    parser.add_argument("--faults-per-pair", type=int, default=1, help="slowdowns in a pair (1)")
    parser.add_argument(
        "--warm-cache", action="store_true", help="the first process need not load alone"
    )
    parser.add_argument(
        "--forked", action="store_true", help="import once: quicker, and a little less fresh"
    )
    parser.add_argument("--commit", help="what this tree is, where git does not know")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Record and say how far the unchanged pairs spread; 2 if a process failed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if min(options.pairs, options.at_once, options.first_pair) < 1 or options.faults_per_pair < 0:
        parser.error("--pairs, --at-once and --first-pair are 1 or more")
    tree = Path(sdopt.__file__).parents[1]
    words = sys.argv[1:] if arguments is None else arguments
    made_by = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": options.commit or commit_at(tree),
        "command": shlex.join(["python", "-m", "studies.power.record", *words]),
    }
    try:
        plan = _plan(options, tree)
        samples = record(plan, options.out, Progress(sys.stderr), made_by)
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(_ratios(samples)))
    return 0


def _plan(options: argparse.Namespace, tree: Path) -> Plan:
    return Plan(
        spec=Spec(
            sides=Sides(base=tree, head=tree),
            source=options.source,
            max_pairs=options.pairs,
            own_caches=False,
        ),
        level=options.level,
        faults=expanded(options.faults),
        per_pair=options.faults_per_pair,
        at_once=options.at_once,
        first_pair=options.first_pair,
        minutes=options.minutes,
        warm_cache=options.warm_cache,
        forked=options.forked,
    )


def _ratios(samples: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for fault in dict.fromkeys(sample["fault"] for sample in samples):
        kind = "peak_mib" if is_of_memory(fault) else "rounds_ms"
        ratios = [
            median(_listed(sample[f"head_{kind}"])) / median(_listed(sample[f"base_{kind}"]))
            for sample in samples
            if sample["fault"] == fault
        ]
        lines.append(f"{fault}: head / base {', '.join(f'{ratio:.4f}' for ratio in ratios)}")
    return lines


def _listed(values: float | list[float]) -> list[float]:
    return values if isinstance(values, list) else [values]


if __name__ == "__main__":
    sys.exit(main())
