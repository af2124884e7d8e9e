"""How long one operation takes on the GPU between others, its weights cold as inside an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from statistics import median
from typing import Any

import torch

from sdopt.engine import cuda_graphs, dependent, ops
from sdopt.engine.cards import card_of
from sdopt.engine.tiles import Tile
from sdopt.tuning.jobs import MOST_TURNS, operand_dtype

ROUNDS = 5
NEIGHBOUR = 512, 320
"""Rows and channels of the LayerNorm between two repeats: a short kernel, as most of an image's."""
MOST_TWICE = 6
"""Of many tiles, how many are timed again after a first round: the fastest."""


def time_us(compute: Callable[[Tile, int], Any], tile: Tile, rounds: int = ROUNDS) -> float:
    """Median microseconds that one operation adds to a chain of short kernels of the engine.

    Repeats of one kernel, one behind the other, hide what it costs between others: how early it
    lets the next one start, and, of the library's, that it does not. So each repeat has a neighbour
    of the engine's, launched as in an image, and a chain of neighbours alone is subtracted.
    """
    return _chain_us(lambda turn: compute(tile, turn), rounds) - _neighbour_us()


@cache
def _neighbour_us() -> float:
    """Microseconds of a neighbour in a chain of its own kind."""
    return _chain_us(lambda turn: None, ROUNDS)


def _chain_us(compute: Callable[[int], Any], rounds: int) -> float:
    """Microseconds of the operation and its neighbour, replayed in a graph over weights in turn."""
    device = torch.device("cuda")
    rows, channels = NEIGHBOUR
    norm = torch.nn.LayerNorm(channels, device=device, dtype=operand_dtype())
    x = torch.zeros((rows, channels), device=device, dtype=operand_dtype())

    def between() -> None:
        with dependent.launches(card_of(device).dependent), torch.no_grad():
            ops.layer_norm(x, norm)

    compute(0)
    between()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with cuda_graphs.capturing(graph):
        for turn in range(MOST_TURNS):
            between()
            compute(turn)
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
