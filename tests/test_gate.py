"""The gate passes what is as good as stored, and fails closed on everything it cannot judge."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sdopt.gate import (
    DEFAULT_LIMITS,
    Gate,
    Limits,
    Outcome,
    Verdict,
    at_least,
    at_most,
    exactly,
    fault,
    first_failure,
    recorded,
)
from sdopt.levels import BASELINE, LEVELS
from sdopt.measure import Comparison, FirstCall, Latency, Likeness, Memory, Work

FINAL = LEVELS["final"]
DPM_20 = LEVELS["dpm-20"]
FIRST = FirstCall(seconds=2.5, compile_cache="cold")
NAN, INF = math.nan, math.inf
STORED = {
    "latency_ms": 100.0,
    "peak_allocated_mib": 1000.0,
    "unet_evaluations": 29,
    "tflop": 1.5,
}

Judge = Callable[[Gate], Verdict]


def a_gate(**fields: Any) -> Gate:
    """A gate that compares with STORED."""
    stored: dict[str, Any] = {
        "comparing": True,
        "stored": {"final": STORED},
        "history": "history/0007_run.json",
        "limits": {"final": Limits(drift=0.999, cost=0.8, truth=0.7)},
        "limits_file": "images/limits.json",
    }
    return Gate(**{**stored, **fields})


def latency(*rounds_ms: float) -> Latency:
    return Latency(rounds_ms=rounds_ms, stage_ms={"text": 1.0, "denoise": 90.0, "decode": 9.0})


def memory(allocated: float) -> Memory:
    return Memory(peak_allocated_mib=allocated, peak_reserved_mib=9000.0, device_used_mib=9500.0)


def work(**counts: Any) -> Work:
    unchanged = {"unet_evaluations": 29, "tflop": 1.5, "recompiles": 0, "graph_breaks": 0}
    return Work(**{**unchanged, **counts})


def slower(gate: Gate) -> Verdict:
    return gate.latency(FINAL, latency(111.0), FIRST)


def larger(gate: Gate) -> Verdict:
    return gate.memory(FINAL, memory(1021.0))


def judged_by(kind: str, record: Any) -> Judge:
    """The gate's method of that name, on that record of the level `final`."""
    return lambda gate: getattr(gate, kind)(FINAL, record)


def alike(*ssim: float, faults: dict[str, str] | None = None) -> Comparison:
    """Prompts p0, p1, ... with these SSIM and a PSNR of 100 times that."""
    likeness = {f"p{n}": Likeness(ssim=s, psnr_db=100 * s) for n, s in enumerate(ssim)}
    return Comparison(likeness=likeness, faults=faults or {})


@pytest.mark.parametrize(
    ("measured", "outcome"),
    [
        (50.0, Outcome.IMPROVEMENT),
        (math.nextafter(80.0, 0.0), Outcome.IMPROVEMENT),
        (80.0, Outcome.PASS),
        (100.0, Outcome.PASS),
        (125.0, Outcome.PASS),
        (math.nextafter(125.0, INF), Outcome.REGRESSION),
        (1e9, Outcome.REGRESSION),
    ],
)
def test_at_most_passes_up_to_its_limit(measured: float, outcome: Outcome) -> None:
    verdict = at_most("final", "latency_ms", measured, 100.0, 0.25)
    assert verdict.outcome is outcome
    assert verdict.passed is (outcome is not Outcome.REGRESSION)
    assert (verdict.measured, verdict.stored, verdict.limit) == (measured, 100.0, 125.0)


def test_at_most_says_how_far_the_value_moved() -> None:
    verdict = at_most("final", "latency_ms", 130.0, 100.0, 0.25)
    assert verdict.reason == "+30.0 % against the stored run, 25 % are allowed"


@pytest.mark.parametrize("value", [NAN, INF, -INF, 0.0, 0, -1.0, None])
@pytest.mark.parametrize("side", ["measured", "stored"])
def test_at_most_faults_a_value_that_cannot_be_judged(value: float | None, side: str) -> None:
    numbers = {"measured": 100.0, "stored": 100.0, side: value}
    verdict = at_most("final", "latency_ms", tolerance=0.25, **numbers)
    assert verdict.outcome is Outcome.FAULT
    assert side in verdict.reason


@pytest.mark.parametrize(
    ("measured", "stored", "outcome"),
    [
        (29, 29, Outcome.PASS),
        (0.1 + 0.2, 0.3, Outcome.PASS),
        (30, 29, Outcome.REGRESSION),
        (28, 29, Outcome.REGRESSION),
        (1.5, 1.5 + 1e-9, Outcome.REGRESSION),
        (NAN, 29, Outcome.REGRESSION),
        (29, NAN, Outcome.REGRESSION),
        (NAN, NAN, Outcome.REGRESSION),
        (None, 29, Outcome.FAULT),
        (29, None, Outcome.FAULT),
        (None, None, Outcome.FAULT),
    ],
)
def test_exactly_passes_the_stored_count_only(
    measured: float | None, stored: float | None, outcome: Outcome
) -> None:
    assert exactly("final", "tflop", measured, stored).outcome is outcome


@pytest.mark.parametrize(
    ("measured", "limit", "outcome"),
    [
        (1.0, 0.99, Outcome.PASS),
        (0.99, 0.99, Outcome.PASS),
        (math.nextafter(0.99, 0), 0.99, Outcome.REGRESSION),
        (-1.0, 0.99, Outcome.REGRESSION),
        (1.0, NAN, Outcome.REGRESSION),
        (0.1, None, Outcome.RECORDED),
        (NAN, 0.99, Outcome.FAULT),
        (NAN, None, Outcome.FAULT),
        (INF, 0.99, Outcome.FAULT),
    ],
)
def test_at_least_passes_from_its_limit_on(
    measured: float, limit: float | None, outcome: Outcome
) -> None:
    assert at_least("final", "ssim_drift", measured, limit, "what").outcome is outcome


@pytest.mark.parametrize(
    ("outcome", "passed"),
    [
        (Outcome.PASS, True),
        (Outcome.RECORDED, True),
        (Outcome.REGRESSION, False),
        (Outcome.FAULT, False),
    ],
)
def test_a_verdict_passes_unless_it_regressed_or_could_not_be_reached(
    outcome: Outcome, passed: bool
) -> None:
    verdict = Verdict(level="final", metric="effect", outcome=outcome, reason="why")
    assert verdict.passed is passed


def test_the_first_failure_speaks_for_all_verdicts() -> None:
    outcomes = (Outcome.RECORDED, Outcome.PASS, Outcome.REGRESSION, Outcome.FAULT)
    verdicts = [Verdict(level="a", metric="m", outcome=o, reason="") for o in outcomes]
    assert first_failure(verdicts).outcome is Outcome.FAULT
    assert first_failure(verdicts[:3]).outcome is Outcome.REGRESSION
    assert first_failure(verdicts[:2]).outcome is Outcome.PASS


def test_a_message_names_the_unit() -> None:
    assert "measured 130 ms, stored 100 ms, limit 125 ms" in (
        at_most("final", "latency_ms", 130.0, 100.0, 0.25).message
    )
    assert "measured 1000 MiB" in recorded("final", "peak_allocated_mib", 1000.0).message


def test_a_verdict_is_short_where_pytest_prints_it() -> None:
    assert repr(fault("final", "tflop", "long" * 99)) == "<Verdict [final] tflop: fault>"


REGRESSIONS: dict[str, tuple[Judge, list[str]]] = {
    "latency": (slower, ["latency_ms", "measured 111", "limit 110", "0007_run.json"]),
    "memory": (larger, ["peak_allocated_mib", "measured 1021", "limit 1020", "0007_run.json"]),
    "more evaluations": (
        judged_by("work", work(unet_evaluations=40)),
        ["unet_evaluations", "measured 40", "stored 29", "limit 29", "0007_run.json"],
    ),
    "less arithmetic": (
        judged_by("work", work(tflop=1.4)),
        ["tflop", "measured 1.4 1e12", "stored 1.5 1e12", "limit 1.5", "0007_run.json"],
    ),
    "recompiles": (
        judged_by("work", work(recompiles=2)),
        ["recompiles", "measured 2", "limit 0", "0007_run.json", "TORCH_LOGS"],
    ),
    "graph breaks": (
        judged_by("work", work(graph_breaks=1)),
        ["graph_breaks", "measured 1", "limit 0", "0007_run.json", "TORCH_LOGS"],
    ),
    "drift": (
        judged_by("drift", alike(1.0, 0.5)),
        ["ssim_drift", "p1", "measured 0.5", "limit 0.999", "limits.json", "--sdopt-accept"],
    ),
    "cost": (
        judged_by("cost", alike(0.5, 0.7)),
        ["ssim_cost", "dpm-20-cutoff", "measured 0.6", "limit 0.8", "limits.json"],
    ),
    "truth": (
        judged_by("truth", alike(0.5, 0.7)),
        ["ssim_truth", "measured 0.6", "limit 0.7", "limits.json"],
    ),
}


@pytest.mark.parametrize(("judge", "words"), REGRESSIONS.values(), ids=REGRESSIONS)
def test_a_regression_says_all_that_is_needed_to_act(judge: Judge, words: list[str]) -> None:
    verdict = judge(a_gate())
    assert verdict.outcome is Outcome.REGRESSION
    wanted = ["[final]", "file: ", "next: ", "pytest benchmarks/", *words]
    assert [word for word in wanted if word not in verdict.message] == []


@pytest.mark.parametrize("judge", [judge for judge, _ in REGRESSIONS.values()], ids=REGRESSIONS)
def test_a_gate_keeps_the_verdict_that_it_gives_back(judge: Judge) -> None:
    gate = a_gate()
    verdict = judge(gate)
    assert verdict in gate.verdicts


def test_what_did_not_take_effect_is_named() -> None:
    verdict = a_gate().effect(FINAL, ["the UNet was not compiled", "the decoder is full"])
    assert verdict.outcome is Outcome.REGRESSION
    assert "the UNet was not compiled; the decoder is full" in verdict.message
    assert 'next: pytest benchmarks/ -k "[final]"' in verdict.message


def test_a_level_that_took_effect_passes() -> None:
    verdict = a_gate().effect(FINAL, [])
    assert (verdict.outcome, verdict.next_step) == (Outcome.PASS, "")


UNCHANGED: dict[str, Judge] = {
    "latency": lambda gate: gate.latency(FINAL, latency(90.0, 110.0, 500.0), FIRST),
    "memory": lambda gate: gate.memory(FINAL, memory(1020.0)),
    "work": lambda gate: gate.work(FINAL, work()),
}


@pytest.mark.parametrize("judge", UNCHANGED.values(), ids=UNCHANGED)
def test_as_good_as_stored_passes(judge: Judge) -> None:
    verdict = judge(a_gate())
    assert (verdict.outcome, verdict.next_step) == (Outcome.PASS, "")


@pytest.mark.parametrize("judge", UNCHANGED.values(), ids=UNCHANGED)
def test_a_refusal_fails_whatever_needs_the_history(judge: Judge) -> None:
    verdict = judge(a_gate(refusal="no stored run in history/", history=None))
    assert verdict.outcome is Outcome.FAULT
    assert "no stored run in history/" in verdict.message
    assert "next: pytest benchmarks/ --benchmark-autosave" in verdict.message


@pytest.mark.parametrize("judge", UNCHANGED.values(), ids=UNCHANGED)
@pytest.mark.parametrize("stored", [{}, {"final": {}}, {"baseline": STORED}])
def test_a_benchmark_missing_from_the_stored_run_fails(
    stored: dict[str, Any], judge: Judge
) -> None:
    verdict = judge(a_gate(stored=stored))
    assert verdict.outcome is Outcome.FAULT
    assert "there is no stored value" in verdict.message
    assert "file: history/0007_run.json" in verdict.message


def test_a_benchmark_that_measured_nothing_fails() -> None:
    verdict = a_gate().latency(FINAL, latency(), FIRST)
    assert verdict.outcome is Outcome.FAULT
    assert "there is no measured value" in verdict.message


@pytest.mark.parametrize("judge", [slower, larger])
def test_without_a_comparison_time_and_memory_are_recorded(judge: Judge) -> None:
    verdict = judge(a_gate(comparing=False, stored={}, history=None))
    assert verdict.outcome is Outcome.RECORDED
    assert "--benchmark-compare" in verdict.reason


@pytest.mark.parametrize("counter", ["recompiles", "graph_breaks"])
def test_without_a_comparison_recompiles_and_graph_breaks_still_fail(counter: str) -> None:
    verdict = a_gate(comparing=False).work(FINAL, work(**{counter: 1}))
    assert (verdict.metric, verdict.outcome) == (counter, Outcome.REGRESSION)


def test_every_count_gets_a_verdict() -> None:
    gate = a_gate()
    gate.work(FINAL, work())
    assert [verdict.metric for verdict in gate.verdicts] == [
        "recompiles",
        "graph_breaks",
        "unet_evaluations",
        "tflop",
    ]


def test_measurements_are_kept_per_level() -> None:
    gate = a_gate()
    gate.latency(FINAL, latency(1.0, 3.0), FIRST)
    gate.memory(DPM_20, memory(7.0))
    assert gate.measured["final"] == {
        "latency_ms": 2.0,
        "stage_ms": {"text": 1.0, "denoise": 90.0, "decode": 9.0},
        "first_call_s": 2.5,
        "compile_cache": "cold",
    }
    assert gate.measured["dpm-20"]["peak_reserved_mib"] == 9000.0


@pytest.mark.parametrize("ssim", [(1.0, 0.2, 0.9), (0.2, 1.0, 0.9), (1.0, 0.9, 0.2)])
def test_drift_is_that_of_the_worst_prompt(ssim: tuple[float, ...]) -> None:
    gate = a_gate()
    verdict = gate.drift(FINAL, alike(*ssim))
    assert f"worst of 3 prompts: p{ssim.index(0.2)}" in verdict.reason
    assert gate.measured["final"] == {"ssim_drift": 0.2, "psnr_drift_db": 20.0}


@pytest.mark.parametrize("ssim", [(NAN, 1.0), (1.0, NAN)])
def test_drift_does_not_overlook_nan(ssim: tuple[float, ...]) -> None:
    assert a_gate().drift(FINAL, alike(*ssim)).outcome is Outcome.FAULT


def test_drift_without_a_measured_limit_uses_the_default_and_says_so() -> None:
    verdict = a_gate(limits={}).drift(FINAL, alike(0.5))
    assert (verdict.outcome, verdict.limit) == (Outcome.REGRESSION, DEFAULT_LIMITS.drift)
    assert "default limit" in verdict.reason


def test_cost_and_truth_are_means_over_the_prompts() -> None:
    gate = a_gate()
    gate.cost(FINAL, alike(0.8, 1.0))
    gate.truth(FINAL, alike(0.6, 1.0))
    assert gate.measured["final"] == {
        "cost_is_comparable": True,
        "ssim_cost": pytest.approx(0.9),
        "psnr_cost_db": pytest.approx(90.0),
        "ssim_truth": pytest.approx(0.8),
        "psnr_truth_db": pytest.approx(80.0),
    }
    assert [verdict.outcome for verdict in gate.verdicts] == [Outcome.PASS, Outcome.PASS]


def test_a_cost_against_another_sampler_is_recorded_whatever_it_is() -> None:
    gate = a_gate(limits={"dpm-20": Limits(drift=0.999, cost=0.99)})
    verdict = gate.cost(DPM_20, alike(0.1))
    assert (verdict.outcome, verdict.limit) == (Outcome.RECORDED, None)
    assert "reported, not gated" in verdict.reason
    assert gate.measured["dpm-20"]["cost_is_comparable"] is False


@pytest.mark.parametrize("limits", [{}, {"final": Limits(drift=0.999)}])
@pytest.mark.parametrize("kind", ["cost", "truth"])
def test_cost_and_truth_without_a_limit_are_recorded(kind: str, limits: dict[str, Limits]) -> None:
    verdict = getattr(a_gate(limits=limits), kind)(FINAL, alike(0.1))
    assert verdict.outcome is Outcome.RECORDED


@pytest.mark.parametrize("what", ["NaN or infinite pixels", "a black picture"])
@pytest.mark.parametrize("kind", ["drift", "cost", "truth"])
def test_worthless_pictures_are_a_fault_that_names_the_prompt(kind: str, what: str) -> None:
    verdict = getattr(a_gate(), kind)(FINAL, alike(1.0, faults={"red-star": what}))
    assert verdict.outcome is Outcome.FAULT
    assert f"[final] ssim_{kind}: fault: red-star: {what}" in verdict.message
    assert "file: images/limits.json" in verdict.message


def test_worthless_pictures_are_not_offered_for_acceptance() -> None:
    verdict = a_gate().drift(FINAL, alike(faults={"p0": "a black picture"}))
    assert "pytest benchmarks/" in verdict.next_step
    assert "--sdopt-accept" not in verdict.next_step


@pytest.mark.parametrize(
    ("device", "rounds_ms", "outcome"),
    [
        ("cuda", 109.0, Outcome.PASS),
        ("cuda", 111.0, Outcome.REGRESSION),
        ("cpu", 149.0, Outcome.PASS),
        ("cpu", 151.0, Outcome.REGRESSION),
    ],
)
def test_the_latency_tolerance_is_that_of_the_device(
    device: str, rounds_ms: float, outcome: Outcome
) -> None:
    verdict = a_gate(device=device).latency(FINAL, latency(rounds_ms), FIRST)
    assert verdict.outcome is outcome


@pytest.mark.parametrize(
    ("rounds_ms", "outcome"), [(129.0, Outcome.PASS), (131.0, Outcome.REGRESSION)]
)
def test_an_eager_level_on_cuda_waits_for_the_host(rounds_ms: float, outcome: Outcome) -> None:
    gate = a_gate(device="cuda", stored={"baseline": STORED})
    assert gate.latency(BASELINE, latency(rounds_ms), FIRST).outcome is outcome


VOID = ("process 77 used the GPU too (3 MiB)", "heat held the GPU back 20 % of the time")


@pytest.mark.parametrize("comparing", [True, False])
def test_a_disturbed_time_is_void_by_name(comparing: bool) -> None:
    gate = a_gate(comparing=comparing)
    verdict = gate.latency(FINAL, replace(latency(100.0), disturbances=VOID), FIRST)
    assert verdict.outcome is Outcome.FAULT
    assert "the measurement is void: process 77 used the GPU too" in verdict.message
    assert "heat held the GPU back" in verdict.message


def test_memory_is_void_when_another_process_used_the_gpu() -> None:
    verdict = a_gate().memory(FINAL, replace(memory(1000.0), disturbances=VOID[:1]))
    assert (verdict.outcome, verdict.metric) == (Outcome.FAULT, "peak_allocated_mib")
    assert "void" in verdict.message


def test_what_the_gpu_did_is_kept_where_there_is_one() -> None:
    gate = a_gate()
    gate.work(FINAL, work(kernel_launches=5, gpu_busy_ms=1.5, host_syncs=2))
    kept = gate.measured["final"]
    assert (kept["kernel_launches"], kept["gpu_busy_ms"], kept["host_syncs"]) == (5, 1.5, 2)
    without = a_gate()
    without.work(FINAL, work())
    assert "kernel_launches" not in without.measured["final"]
