"""One pair measured: base and head generate in turns, the head with one fault after the other."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from sdopt.bench.ab.rounds import BLOCK_ROUNDS, BLOCKS, Side, in_order, mirrored
from sdopt.errors import SdoptError
from studies.power.crew import Pair
from studies.power.shares import UNCHANGED

CALIBRATION_ROUNDS = 3
"""Images before the turns: what a fault takes a share of."""


def measured(pair: Pair, level: str, slow: list[str], large: list[str]) -> list[dict[str, Any]]:
    """A sample of the unchanged pair, one of each slowdown, and one of each fault of memory.

    Raises SdoptError for faults of memory without CUDA, where no memory is measured.
    """
    if large and pair.device != "cuda":
        raise SdoptError(f"{', '.join(large)}: memory is only measured with CUDA; leave it out")
    # Before any fault: the engine keeps graphs that were captured with one, and their memory.
    peaks = {side: _peak(pair, side) for side in in_order(pair.first)}
    with_fault = {fault: _peak(pair, "head", fault) for fault in large}
    rounds = _rounds(pair, level, slow)
    samples = [
        {
            "fault": fault,
            "base_rounds_ms": rounds["base"],
            "head_rounds_ms": rounds[fault],
            **({f"{side}_peak_mib": peaks[side] for side in peaks} if fault == UNCHANGED else {}),
        }
        for fault in (UNCHANGED, *slow)
    ]
    for fault, peak in with_fault.items():
        samples.append({"fault": fault, "base_peak_mib": peaks["base"], "head_peak_mib": peak})
    about = {"level": level, "pair": pair.number, "first": pair.first, "device": pair.device}
    return [{**about, **sample} for sample in samples]


def _rounds(pair: Pair, level: str, slow: Sequence[str]) -> dict[str, list[float]]:
    """Times of the base and of the head with each fault, in turns there and back again."""
    base, head = pair.workers["base"], pair.workers["head"]
    warm = {side: _generated(pair, side, CALIBRATION_ROUNDS) for side in in_order(pair.first)}
    image_ms = median(warm["head"])
    arms = ["base", UNCHANGED, *slow]
    rounds: dict[str, list[float]] = {arm: [] for arm in arms}
    for arm in mirrored(arms if pair.first == "base" else arms[::-1], BLOCKS[pair.device]):
        if arm != "base":
            head.ask("inject", about=level, fault=arm, image_ms=image_ms)
        worker = base if arm == "base" else head
        rounds[arm] += worker.ask("rounds", about=level, count=BLOCK_ROUNDS[pair.device])["ms"]
    head.ask("inject", about=level, fault=UNCHANGED)
    return {arm: [round(ms, 2) for ms in times] for arm, times in rounds.items()}


def _generated(pair: Pair, side: Side, count: int) -> list[float]:
    times: list[float] = pair.workers[side].ask("rounds", count=count)["ms"]
    return times


def _peak(pair: Pair, side: Side, fault: str = UNCHANGED) -> float | None:
    """The peak of an image, in MiB; with a fault, after as many images as a block has."""
    worker = pair.workers[side]
    if fault != UNCHANGED:
        worker.ask("memory")  # the peak that the fault takes a share of
        worker.ask("inject", fault=fault, image_ms=1.0)
        worker.ask("rounds", count=BLOCK_ROUNDS[pair.device])
    peak: float | None = worker.ask("memory")["peak_allocated_mib"]
    if fault != UNCHANGED:
        worker.ask("inject", fault=UNCHANGED)
    return peak
