"""Several pairs of fresh processes, loaded at the same time, so that each can be measured in turn.

Loading costs far more than measuring, most of it on the host: imports and Dynamo. Over all cores it
costs little more for sixteen processes than for one. Nothing loads while something measures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from sdopt.bench.ab.cleanup import Janitor
from sdopt.bench.ab.process import Start, Worker, spawned
from sdopt.bench.ab.result import Spec
from sdopt.bench.ab.rounds import Side, in_order


@dataclass(kw_only=True)
class Pair:
    """Both workers of one pair, and what they said when they had loaded the level."""

    number: int
    workers: dict[Side, Worker] = field(default_factory=dict)
    loaded: dict[Side, dict[str, Any]] = field(default_factory=dict)

    @property
    def first(self) -> Side:
        """Who generates first."""
        return "base" if self.number % 2 else "head"

    @property
    def device(self) -> str:
        """'cpu' or 'cuda'."""
        return str(self.loaded["head"]["device"])

    def load(self, side: Side, level: str) -> None:
        """Import, build the level and warm it up."""
        worker = self.workers[side]
        self.loaded[side] = {**worker.ask("hello"), **worker.ask("load", about=level, level=level)}


@contextmanager
def loaded_pairs(
    spec: Spec,
    level: str,
    numbers: Sequence[int],
    keeper: Janitor,
    *,
    one_first: bool,
    start: Start = spawned,
) -> Iterator[list[Pair]]:
    """The pairs, warm; gone afterwards.

    With `one_first` a process loads before all others: what it compiles, the others find. Raises
    WorkerError if one of them fails.
    """
    pairs: list[Pair] = []
    started: list[Worker] = []
    loaders = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        for number in numbers:
            pair = Pair(number=number)
            pairs.append(pair)
            for side in in_order(pair.first):
                # Only the very first may have to compile.
                threads = spec.compile_threads if one_first and not started else 1
                worker = Worker(replace(spec, compile_threads=threads), side, start)
                started.append(worker)
                keeper.guard(worker.group)
                pair.workers[side] = worker
        tasks = [(pair, side) for pair in pairs for side in in_order(pair.first)]
        if one_first:
            pair, side = tasks.pop(0)
            pair.load(side, level)
        for future in [loaders.submit(pair.load, side, level) for pair, side in tasks]:
            future.result()
        yield pairs
    finally:
        loaders.shutdown(wait=False, cancel_futures=True)
        _end(started, keeper)


def _end(workers: Sequence[Worker], keeper: Janitor) -> None:
    """Kill all of them before waiting for the first: a GPU's memory takes a while to be freed."""
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.end()
        keeper.forget(worker.group)
