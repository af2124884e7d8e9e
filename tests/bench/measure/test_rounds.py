"""Timed rounds that compile, capture or leave memory behind are told apart from healthy ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sdopt.bench.judge.gate import Gate
from sdopt.bench.judge.verdict import Outcome
from sdopt.bench.measure import FirstCall, Latency, rounds
from sdopt.bench.measure.rounds import Rounds, held_mib, watched_rounds
from sdopt.bench.measure.timing import WARMUP_ROUNDS
from sdopt.bench.metrics.time import GROWTH_LIMIT_MIB
from sdopt.levels import BASELINE

CPU = torch.device("cpu")
ROUNDS = 7


def readings(*held: float) -> Rounds:
    return Rounds(device=CPU, held_mib=list(held), graphs=[0] * len(held))


def generated(run: Callable[[int], None], warmup: int = WARMUP_ROUNDS) -> Rounds:
    """The readings around that many generates, of which the first ones warm up."""
    with watched_rounds(CPU) as seen:
        for number in range(warmup + ROUNDS):
            seen.read()
            run(number)
        seen.read()
    return seen


@pytest.mark.parametrize(
    ("held", "growth"),
    [
        ([100.0] * 8, 0.0),
        ([100 + 3.0 * n for n in range(8)], 3.0),
        ([100 + 6.0 * (n // 2) for n in range(8)], 3.0),
        ([100.0, 100, 100, 140, 140, 140, 140, 140], 0.0),
        ([140.0, 100, 100, 100, 100, 100, 100, 100], 0.0),
        ([102.0, 107, 98, 114, 98, 102, 106, 104], 0.0),
        ([92.0, 111, 98, 101, 104, 107, 113, 113], 3.0),
    ],
    ids=[
        *("none", "each image", "every second image", "one allocation that stays", "given back"),
        *("what comes and goes", "a leak beside it"),
    ],
)
def test_a_leak_is_what_each_image_leaves_behind(held: list[float], growth: float) -> None:
    assert readings(0.0, *held).growth_mib(1) == pytest.approx(growth)


def test_too_few_rounds_tell_nothing() -> None:
    assert readings(0.0, 1.0, 2.0, 3.0).growth_mib(1) is None
    assert readings().new_graphs(1) == 0


@pytest.mark.parametrize(("mib", "passes"), [(0, True), (3, False)])
def test_resident_memory_shows_a_leak_of_three_mib(mib: int, passes: bool) -> None:
    kept: list[torch.Tensor] = []

    def run() -> None:
        torch.ones(2**22)  # what an image takes and gives back
        if mib:
            kept.append(torch.ones(mib * 2**20, dtype=torch.uint8))

    growth = rounds.growth_of(run, CPU)
    assert growth is not None
    assert (growth <= GROWTH_LIMIT_MIB["cpu"]) is passes


def test_what_is_compiled_after_the_warm_up_is_counted() -> None:
    """As where the warm-up generates fewer steps than the rounds."""

    def shifted(value: torch.Tensor) -> torch.Tensor:
        return value + 1

    compiled: Any = torch.compile(shifted, backend="eager", dynamic=False)
    in_first_round = generated(lambda number: compiled(torch.zeros(2 + (number >= WARMUP_ROUNDS))))
    assert in_first_round.new_graphs(WARMUP_ROUNDS) == 1
    in_no_round = generated(lambda number: compiled(torch.zeros(3)))
    assert in_no_round.new_graphs(WARMUP_ROUNDS) == 0


def test_a_capture_by_anybody_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", lambda self: None)
    original = torch.cuda.CUDAGraph.capture_begin
    capture: Any = lambda: torch.cuda.CUDAGraph.capture_begin(object())  # type: ignore[arg-type] # noqa: E731
    seen = generated(lambda number: capture() if number == WARMUP_ROUNDS else None)
    assert seen.new_graphs(WARMUP_ROUNDS) == 1
    assert (
        generated(lambda number: capture() if number == 0 else None).new_graphs(WARMUP_ROUNDS) == 0
    )
    assert torch.cuda.CUDAGraph.capture_begin is original


def test_memory_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert held_mib(CPU) > 10
    monkeypatch.setattr(rounds.torch.cuda, "memory_allocated", lambda device: 3 * 2**20)
    assert held_mib(torch.device("cuda")) == 3.0


def judged(device: str = "cpu", **record: Any) -> dict[str, Outcome]:
    gate = Gate(device=device)
    latency = Latency(rounds_ms=(1.0,), stage_ms={}, **record)
    spoken = gate.latency(BASELINE, latency, FirstCall(seconds=1.0, compile_cache="eager"))
    assert spoken.passed is all(verdict.passed for verdict in gate.verdicts)
    return {verdict.metric: verdict.outcome for verdict in gate.verdicts}


def test_the_gate_judges_both_in_every_run() -> None:
    assert judged() == {"latency_ms": Outcome.RECORDED}
    healthy = judged(graphs_in_rounds=0, growth_mib=0.5)
    assert healthy["graphs_in_rounds"] is healthy["growth_mib"] is Outcome.PASS
    assert judged(graphs_in_rounds=1)["graphs_in_rounds"] is Outcome.REGRESSION
    assert judged(growth_mib=3.0)["growth_mib"] is Outcome.REGRESSION
    assert judged("cuda", growth_mib=1.2)["growth_mib"] is Outcome.REGRESSION
    disturbed = judged(graphs_in_rounds=1, disturbances=("heat",))
    assert disturbed["graphs_in_rounds"] is Outcome.REGRESSION
