"""The order in which two processes take turns, and what their times come to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Literal, TypeVar

Arm = TypeVar("Arm")
Side = Literal["base", "head"]

BLOCK_ROUNDS = {"cpu": 1, "cuda": 3}
"""Images in a row. On a GPU the first one after a change of process may find other clocks."""
BLOCKS = {"cpu": 12, "cuda": 4}
"""How many blocks each side has; even, so that each side is first equally often."""


def in_order(first: Side) -> tuple[Side, Side]:
    """Both sides, that one first."""
    return (first, "head" if first == "base" else "base")


def schedule(first: Side, blocks: int) -> Iterator[Side]:
    """Whose block comes next: ABBA ABBA, so that a steady drift hits both alike.

    Each side's block number i is next to the other side's block number i.
    """
    return mirrored(in_order(first), blocks)


def mirrored(arms: Sequence[Arm], blocks: int) -> Iterator[Arm]:
    """There and back again, so that a steady drift hits all alike; of two arms it is ABBA."""
    for index in range(blocks):
        yield from arms if index % 2 == 0 else reversed(arms)


def latency_pair(
    base_ms: Sequence[float], head_ms: Sequence[float], block_rounds: int
) -> tuple[float, float]:
    """One latency for each side, whose ratio is the median over matched blocks.

    ln(head / base) = median of ln(head block's median / base block's median), and the base's is the
    median of its rounds.
    """
    blocks = zip(_medians(base_ms, block_rounds), _medians(head_ms, block_rounds), strict=True)
    log_ratio = median(math.log(head / base) for base, head in blocks)
    whole = median(base_ms)
    return whole, whole * math.exp(log_ratio)


def _medians(rounds_ms: Sequence[float], block_rounds: int) -> list[float]:
    starts = range(0, len(rounds_ms), block_rounds)
    return [median(rounds_ms[start : start + block_rounds]) for start in starts]
