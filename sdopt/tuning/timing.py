"""How long one operation takes on the GPU, its weights cold in the cache as inside an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from sdopt.engine.tiles import Tile
from sdopt.tuning.jobs import MOST_TURNS

ROUNDS = 5
MOST_TWICE = 6
"""Of many tiles, how many are timed again after a first round: the fastest."""


def time_us(compute: Callable[[Tile, int], Any], tile: Tile, rounds: int = ROUNDS) -> float:
    """Median microseconds of one operation, replayed in a graph over weights in turn."""
    compute(tile, 0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for turn in range(MOST_TURNS):
            compute(tile, turn)
    graph.replay()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / MOST_TURNS)
    return float(median(times))


def times_us(
    compute: Callable[[Tile, int], Any],
    tiles: Sequence[Tile],
    time_one: Callable[[Callable[[Tile, int], Any], Tile, int], float] = time_us,
) -> dict[Tile, float]:
    """Microseconds of each; of all but the fastest from one round."""
    times = {tile: time_one(compute, tile, 1) for tile in tiles}
    for tile in sorted(times, key=lambda one: times[one])[:MOST_TWICE]:
        times[tile] = time_one(compute, tile, ROUNDS)
    return times
