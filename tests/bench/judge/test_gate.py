"""The gate passes what is as good as stored, and fails closed on everything it cannot judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from sdopt.bench.judge.counts import changed_work
from sdopt.bench.judge.gate import Gate
from sdopt.bench.judge.statistics import judge_by_history
from sdopt.bench.judge.verdict import Outcome, Verdict
from sdopt.bench.measure import Comparison, FirstCall, Latency, Memory, Work
from sdopt.bench.metrics.metric import Seen
from sdopt.bench.metrics.time import LATENCY_RULE
from sdopt.bench.metrics.work import ACCEPTED_COUNTS
from sdopt.levels import BASELINE, LEVELS, TUNED, TURBO, Level

FINAL = LEVELS["final"]
DPM_20 = LEVELS["dpm-20"]
FIRST = FirstCall(seconds=2.5, compile_cache="cold")
NAN = math.nan
STORED = {
    "latency_ms": 100.0,
    "peak_allocated_mib": 1000.0,
    "gpu_busy_ms": 90.0,
    "kernel_launches": 5000,
    "host_syncs": 2,
    "kernels_by_part": {"unet": 4000, "decoder": 900, "between": 100},
}
WORK = {
    "unet_evaluations": 29,
    "tflop": 1.5,
    "calls": {"unet": 20, "decoder": 1},
    "tflop_by_module": {"unet.mid_block": 1.0, "decoder.conv_in": 0.5},
}
ON_GPU = {name: STORED[name] for name in ("gpu_busy_ms", "kernel_launches", "host_syncs")}
METRICS = ("latency_ms", "peak_allocated_mib", "gpu_busy_ms", "kernel_launches")

Judge = Callable[[Gate], Verdict]


def series_of(*runs: Mapping[str, Any], level: str = "final") -> dict[str, dict[str, list[float]]]:
    return {level: {metric: [run[metric] for run in runs] for metric in METRICS}}


def a_gate(**fields: Any) -> Gate:
    """A gate that compares with one run that measured STORED and with the counts WORK."""
    stored: dict[str, Any] = {
        "comparing": True,
        "stored": {"final": STORED},
        "series": series_of(STORED),
        "commit": "0123456789ab",
        "history": "history/0007_run.json",
        "work_stored": {"final": WORK},
        "work_file": "work/set.json",
        "limits": {"final": {"drift": 0.999, "cost": 0.8, "ground_truth": 0.7}},
        "limits_file": "images/limits.json",
    }
    return Gate(**{**stored, **fields})


def latency(*rounds_ms: float) -> Latency:
    return Latency(rounds_ms=rounds_ms, stage_ms={"text": 1.0, "denoise": 90.0, "decode": 9.0})


def memory(allocated: float) -> Memory:
    return Memory(peak_allocated_mib=allocated, peak_reserved_mib=9000.0, device_used_mib=9500.0)


def work(**counts: Any) -> Work:
    return Work(**{**WORK, "recompiles": 0, "graph_breaks": 0, **counts})


def gpu_work(**counts: Any) -> Work:
    return work(**{**ON_GPU, "kernels_by_part": STORED["kernels_by_part"], **counts})


def slower(gate: Gate) -> Verdict:
    return gate.latency(FINAL, latency(200.0), FIRST)


def larger(gate: Gate) -> Verdict:
    return gate.memory(FINAL, memory(1100.0))


def judged_by(kind: str, record: Any) -> Judge:
    """The gate's method of that name, on that record of the level `final`."""
    return lambda gate: getattr(gate, kind)(FINAL, record)


def alike(*ssim: float, kind: str = "drift", faults: dict[str, str] | None = None) -> Comparison:
    """Prompts p0, p1, ... with these SSIM; no block of them differs."""
    prompts = [f"p{n}" for n in range(len(ssim))]
    seen = {f"ssim_{kind}": dict(zip(prompts, map(Seen, ssim), strict=True))}
    if kind == "drift":
        seen["block_drift"] = dict.fromkeys(prompts, Seen(0.0, "column 0, row 0"))
    return Comparison(seen=seen, faults=faults or {})


RUN_FILE, SETTLE = "0007_run.json", "--sdopt-ab=0123456789ab"
REGRESSIONS: dict[str, tuple[Judge, list[str]]] = {
    "latency": (slower, ["latency_ms", "measured 200 ms", "stored 100 ms", RUN_FILE, SETTLE]),
    "memory": (
        larger,
        ["peak_allocated_mib", "measured 1100 MiB", "stored 1000 MiB", RUN_FILE, SETTLE],
    ),
    "busier": (
        judged_by("work", gpu_work(gpu_busy_ms=180.0)),
        ["gpu_busy_ms", "measured 180 ms", "stored 90 ms", RUN_FILE, SETTLE],
    ),
    "more kernels": (
        judged_by("work", gpu_work(kernel_launches=9000)),
        ["kernel_launches", "measured 9000", "stored 5000", RUN_FILE, SETTLE],
    ),
    "more waiting": (
        judged_by("work", gpu_work(host_syncs=3)),
        ["host_syncs", "measured 3", "stored 2", "limit 2", RUN_FILE, SETTLE],
    ),
    "more evaluations": (
        judged_by("work", work(unet_evaluations=40)),
        ["unet_evaluations", "measured 40", "stored 29", "limit 29", "set.json", "--sdopt-accept"],
    ),
    "less arithmetic": (
        judged_by("work", work(tflop=1.4)),
        ["tflop", "measured 1.4 1e12", "stored 1.5 1e12", "limit 1.5", "set.json", "-accept"],
    ),
    "recompiles": (
        judged_by("work", work(recompiles=2)),
        ["recompiles", "measured 2", "limit 0", RUN_FILE, "TORCH_LOGS"],
    ),
    "graph breaks": (
        judged_by("work", work(graph_breaks=1)),
        ["graph_breaks", "measured 1", "limit 0", RUN_FILE, "TORCH_LOGS"],
    ),
    "drift": (
        judged_by("drift", alike(1.0, 0.5)),
        ["ssim_drift", "p1", "measured 0.5", "limit 0.999", "limits.json", "--sdopt-accept"],
    ),
    "cost": (
        judged_by("cost", alike(0.5, 0.7, kind="cost")),
        ["ssim_cost", "dpm-20-cutoff", "measured 0.6", "limit 0.8", "limits.json"],
    ),
    "ground_truth": (
        judged_by("ground_truth", alike(0.5, 0.7, kind="ground_truth")),
        ["ssim_ground_truth", "measured 0.6", "limit 0.7", "limits.json"],
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


BY_HISTORY: dict[str, Judge] = {
    "latency": lambda gate: gate.latency(FINAL, latency(90.0, 110.0, 500.0), FIRST),
    "memory": lambda gate: gate.memory(FINAL, memory(1002.0)),
    "gpu work": lambda gate: gate.work(FINAL, gpu_work()),
}
UNCHANGED: dict[str, Judge] = {**BY_HISTORY, "work": lambda gate: gate.work(FINAL, work())}


@pytest.mark.parametrize("judge", UNCHANGED.values(), ids=UNCHANGED)
def test_as_good_as_stored_passes(judge: Judge) -> None:
    gate = a_gate()
    verdict = judge(gate)
    assert (verdict.outcome, verdict.next_step) == (Outcome.PASS, "")
    assert {verdict.outcome for verdict in gate.verdicts} == {Outcome.PASS}


@pytest.mark.parametrize("judge", BY_HISTORY.values(), ids=BY_HISTORY)
def test_a_refusal_fails_whatever_needs_the_history(judge: Judge) -> None:
    verdict = judge(a_gate(refusal="no stored run in history/", history=None))
    assert verdict.outcome is Outcome.FAULT
    assert "no stored run in history/" in verdict.message
    assert "next: pytest benchmarks/ --benchmark-autosave" in verdict.message


@pytest.mark.parametrize("judge", BY_HISTORY.values(), ids=BY_HISTORY)
def test_a_refusal_may_know_a_better_command(judge: Judge) -> None:
    verdict = judge(a_gate(refusal="unfit", refusal_hint="pytest without it"))
    assert verdict.next_step == "pytest without it"


@pytest.mark.parametrize("judge", BY_HISTORY.values(), ids=BY_HISTORY)
def test_a_stored_run_of_another_level_fails_whatever_needs_it(judge: Judge) -> None:
    verdict = judge(a_gate(redefined={"final": "steps 30 -> 20"}))
    assert verdict.outcome is Outcome.FAULT
    assert "the stored run measured another level: steps 30 -> 20" in verdict.message
    assert verdict.next_step.startswith("pytest benchmarks/ --benchmark-autosave  # ")


@pytest.mark.parametrize("judge", BY_HISTORY.values(), ids=BY_HISTORY)
@pytest.mark.parametrize("stored", [{}, {"final": {}}, {"baseline": STORED}])
def test_a_benchmark_missing_from_the_stored_run_fails(
    stored: dict[str, Any], judge: Judge
) -> None:
    verdict = judge(a_gate(stored=stored, series={level: {} for level in stored}))
    assert verdict.outcome is Outcome.FAULT
    assert "there is no stored value" in verdict.message
    assert "file: history/0007_run.json" in verdict.message
    assert verdict.next_step == (
        "pytest benchmarks/ --benchmark-autosave  # stores a run to compare with"
    )


def test_a_loop_that_never_waits_is_no_missing_measurement() -> None:
    gate = a_gate(stored={"final": {}})
    gate.work(FINAL, gpu_work(host_syncs=0))
    (verdict,) = (verdict for verdict in gate.verdicts if verdict.metric == "host_syncs")
    assert verdict.outcome is Outcome.FAULT
    assert verdict.next_step.endswith("# stores a run to compare with")


def test_a_benchmark_that_measured_nothing_fails() -> None:
    verdict = a_gate().latency(FINAL, latency(), FIRST)
    assert verdict.outcome is Outcome.FAULT
    assert "there is no measured value" in verdict.message
    assert verdict.next_step.endswith("--benchmark-compare  # measures it again")


def test_an_unsound_stored_value_is_left_behind_by_accepting() -> None:
    series = series_of({**STORED, "latency_ms": NAN}, STORED)
    verdict = a_gate(series=series).latency(FINAL, latency(100.0), FIRST)
    assert (verdict.outcome, verdict.reason) == (Outcome.FAULT, "the stored value is nan")
    assert verdict.next_step.startswith(
        "pytest benchmarks/ --benchmark-autosave --sdopt-accept  # "
    )


@pytest.mark.parametrize("judge", [slower, larger])
def test_without_a_comparison_time_and_memory_are_recorded(judge: Judge) -> None:
    verdict = judge(a_gate(comparing=False, stored={}, series={}, history=None))
    assert verdict.outcome is Outcome.RECORDED
    assert "--benchmark-compare" in verdict.reason


def test_without_a_comparison_what_the_gpu_did_is_recorded() -> None:
    gate = a_gate(comparing=False, stored={}, series={}, history=None)
    assert gate.work(FINAL, gpu_work(kernel_launches=9000, host_syncs=7)).passed
    recorded = [v.metric for v in gate.verdicts if v.outcome is Outcome.RECORDED]
    assert recorded == ["gpu_busy_ms", "kernel_launches", "host_syncs"]


@pytest.mark.parametrize("counter", ["recompiles", "graph_breaks"])
def test_without_a_comparison_recompiles_and_graph_breaks_still_fail(counter: str) -> None:
    verdict = a_gate(comparing=False).work(FINAL, work(**{counter: 1}))
    assert (verdict.metric, verdict.outcome) == (counter, Outcome.REGRESSION)


@pytest.mark.parametrize("state", [{"comparing": False}, {"refusal": "none"}, {}])
@pytest.mark.parametrize(("metric", "value"), [("unet_evaluations", 28), ("tflop", 1.6)])
def test_counts_of_work_are_compared_in_every_run(
    metric: str, value: float, state: dict[str, Any]
) -> None:
    verdict = a_gate(**state).work(FINAL, work(**{metric: value}))
    assert (verdict.metric, verdict.outcome) == (metric, Outcome.REGRESSION)
    assert verdict.file == "work/set.json"
    assert verdict.next_step == (
        'pytest benchmarks/ -k "[final]" --sdopt-accept  # if the new work is meant'
    )


@pytest.mark.parametrize("comparing", [True, False])
@pytest.mark.parametrize("stored", [{}, {"baseline": WORK}, {"final": {"tflop": 1.5}}])
def test_counts_that_nobody_stored_are_a_fault_that_says_how_to_store_them(
    stored: dict[str, Any], comparing: bool
) -> None:
    verdict = a_gate(comparing=comparing, work_stored=stored).work(FINAL, work())
    assert (verdict.metric, verdict.outcome) == ("unet_evaluations", Outcome.FAULT)
    assert verdict.reason == "there is no stored value"
    assert "file: work/set.json" in verdict.message
    assert verdict.next_step == (
        'pytest benchmarks/ -k "[final]" --sdopt-accept  # stores this run\'s counts'
    )


@pytest.mark.parametrize(
    ("counts", "outcome"),
    [
        ({"host_syncs": 1}, Outcome.IMPROVEMENT),
        ({"host_syncs": 3}, Outcome.REGRESSION),
        ({"unet_evaluations": 28}, Outcome.REGRESSION),
        ({"tflop": 1.4}, Outcome.REGRESSION),
    ],
)
def test_less_is_better_of_what_the_gpu_did_and_not_of_what_the_level_promises(
    counts: dict[str, float], outcome: Outcome
) -> None:
    gate = a_gate()
    gate.work(FINAL, gpu_work(**counts))
    (verdict,) = (verdict for verdict in gate.verdicts if verdict.metric in counts)
    assert verdict.outcome is outcome


def test_every_count_gets_a_verdict() -> None:
    gate = a_gate()
    gate.work(FINAL, work(float8_products=250))
    everywhere = ["recompiles", "graph_breaks", *ACCEPTED_COUNTS]
    assert [verdict.metric for verdict in gate.verdicts] == everywhere
    on_gpu = a_gate()
    on_gpu.work(FINAL, gpu_work(float8_products=250))
    assert {verdict.metric for verdict in on_gpu.verdicts} == {*everywhere, *ON_GPU}


def test_a_changed_count_says_which_part_and_module_changed() -> None:
    calls = {"unet": 19, "decoder": 1}
    modules = {"unet.mid_block": 0.95, "decoder.conv_in": 0.5}
    changed = work(tflop=1.45, calls=calls, tflop_by_module=modules)
    verdict = a_gate().work(FINAL, changed)
    assert verdict.reason == (
        "has to equal what is stored: unet called 20 -> 19 times, unet.mid_block 1 -> 0.95 TFLOP"
    )


def test_a_changed_number_of_kernels_says_in_which_part() -> None:
    eager = replace(BASELINE, compiled=False)
    stored = {**STORED, "kernels_by_part": {"unet": 4000, "decoder": 900, "between": 100}}
    gate = a_gate(
        stored={"baseline": stored},
        series=series_of(stored, level="baseline"),
        work_stored={"baseline": WORK},
    )
    now = {"unet": 4001, "decoder": 900, "between": 100}
    verdict = gate.work(eager, gpu_work(kernel_launches=5001, kernels_by_part=now))
    assert (verdict.metric, verdict.outcome) == ("kernel_launches", Outcome.REGRESSION)
    assert verdict.reason == "has to equal what is stored: unet 4000 -> 4001 kernels"


@pytest.mark.parametrize(
    ("level", "exact"), [(BASELINE, True), (TUNED, False), (FINAL, False), (TURBO, True)]
)
def test_kernels_are_exact_without_the_search_for_algorithms_only(
    level: Level, exact: bool
) -> None:
    gate = a_gate(
        stored={level.name: STORED},
        series=series_of(STORED, level=level.name),
        work_stored={level.name: WORK},
    )
    gate.work(level, gpu_work(kernel_launches=5001))
    (verdict,) = (verdict for verdict in gate.verdicts if verdict.metric == "kernel_launches")
    assert verdict.outcome is (Outcome.REGRESSION if exact else Outcome.PASS)


@pytest.mark.parametrize(
    ("stored", "measured", "changes"),
    [
        ({}, WORK, []),
        (WORK, {}, []),
        (WORK, WORK, []),
        ({"calls": {"unet": 20}}, {"calls": {"unet": 19}}, ["unet called 20 -> 19 times"]),
        ({"calls": {}}, {"calls": {"text": 2}}, ["text called 0 -> 2 times"]),
        ({"calls": {"text": 2}}, {"calls": {}}, ["text called 2 -> 0 times"]),
        ({"tflop_by_module": {"a": 1.0}}, {"tflop_by_module": {"a": 1.0 + 1e-12}}, []),
        (
            {"tflop_by_module": {"a": 1.0, "b": 2.0}},
            {"tflop_by_module": {"a": 1.0, "c": 0.25}},
            ["b 2 -> 0 TFLOP", "c 0 -> 0.25 TFLOP"],
        ),
        (
            {"kernels_by_part": {"unet": 5}},
            {"kernels_by_part": {"unet": 6}},
            ["unet 5 -> 6 kernels"],
        ),
        ({"kernels_by_part": {"unet": 5}}, {"kernels_by_part": None}, []),
    ],
)
def test_changed_work_names_each_part_and_module_that_changed(
    stored: dict[str, Any], measured: dict[str, Any], changes: list[str]
) -> None:
    assert changed_work(stored, measured) == changes


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
    assert gate.measured["final"] == {
        "ssim_drift": 0.2,
        "block_drift": 0.0,
    }


@pytest.mark.parametrize(
    ("block", "outcome"),
    [(0.099, Outcome.PASS), (0.101, Outcome.REGRESSION), (NAN, Outcome.FAULT)],
)
def test_a_spot_that_the_mean_ssim_does_not_show_is_a_regression(
    block: float, outcome: Outcome
) -> None:
    seen = {
        "ssim_drift": {"p0": Seen(1.0), "p1": Seen(0.99995)},
        "block_drift": {"p0": Seen(0.0), "p1": Seen(block, "column 0, row 0")},
    }
    verdict = a_gate().drift(FINAL, Comparison(seen=seen, faults={}))
    assert verdict.outcome is outcome
    assert verdict.metric == ("ssim_drift" if outcome is Outcome.PASS else "block_drift")
    if outcome is Outcome.REGRESSION:
        assert "at column 0, row 0 of p1" in verdict.reason
        assert "--sdopt-accept" in verdict.next_step


def test_a_failed_drift_tells_of_its_worst_block_as_well() -> None:
    seen = {
        "ssim_drift": {"p0": Seen(0.5)},
        "block_drift": {"p0": Seen(0.9, "column 3, row 4")},
    }
    verdict = a_gate().drift(FINAL, Comparison(seen=seen, faults={}))
    assert verdict.metric == "ssim_drift"
    assert "block_drift 0.9 (limit 0.1)" in verdict.reason
    assert "at column 3, row 4 of p0" in verdict.reason


@pytest.mark.parametrize("ssim", [(NAN, 1.0), (1.0, NAN)])
def test_drift_does_not_overlook_nan(ssim: tuple[float, ...]) -> None:
    assert a_gate().drift(FINAL, alike(*ssim)).outcome is Outcome.FAULT


def test_drift_without_a_measured_limit_uses_the_default_and_says_so() -> None:
    verdict = a_gate(limits={}).drift(FINAL, alike(0.5))
    assert (verdict.outcome, verdict.limit) == (Outcome.REGRESSION, 0.99)
    assert "default limit" in verdict.reason


def test_drift_without_a_stored_image_is_a_fault_that_says_how_to_store_one() -> None:
    verdict = a_gate().drift(FINAL, alike(1.0), {"p1": "no baseline image p1.png"})
    assert (verdict.outcome, verdict.reason) == (Outcome.FAULT, "no baseline image p1.png")
    assert verdict.next_step == (
        'pytest benchmarks/ -k "[final]" --sdopt-accept  # stores this run\'s images and latents'
    )


def test_cost_and_truth_are_means_over_the_prompts() -> None:
    gate = a_gate()
    gate.cost(FINAL, alike(0.8, 1.0, kind="cost"))
    gate.ground_truth(FINAL, alike(0.6, 1.0, kind="ground_truth"))
    assert gate.measured["final"] == {
        "cost_is_comparable": True,
        "ssim_cost": pytest.approx(0.9),
        "ssim_ground_truth": pytest.approx(0.8),
    }
    assert [verdict.outcome for verdict in gate.verdicts] == [Outcome.PASS, Outcome.PASS]


def test_a_cost_against_another_sampler_is_recorded_whatever_it_is() -> None:
    gate = a_gate(limits={"dpm-20": {"drift": 0.999, "cost": 0.99}})
    verdict = gate.cost(DPM_20, alike(0.1, kind="cost"))
    assert (verdict.outcome, verdict.limit) == (Outcome.RECORDED, None)
    assert "reported, not gated" in verdict.reason
    assert gate.measured["dpm-20"]["cost_is_comparable"] is False


@pytest.mark.parametrize("kind", ["cost", "ground_truth"])
def test_means_over_own_prompts_are_not_judged_by_limits_of_the_built_in_ones(kind: str) -> None:
    limits = {"final": {"drift": 0.999, kind: 0.9}}
    own, built_in = a_gate(limits=limits, own_prompts=True), a_gate(limits=limits)
    below = alike(0.8, kind=kind)
    verdict = getattr(own, kind)(FINAL, below)
    assert (verdict.outcome, verdict.limit) == (Outcome.RECORDED, None)
    assert "limits are of the built-in prompts" in verdict.reason
    assert getattr(built_in, kind)(FINAL, below).outcome is Outcome.REGRESSION


@pytest.mark.parametrize("limits", [{}, {"final": {"drift": 0.999}}])
@pytest.mark.parametrize("kind", ["cost", "ground_truth"])
def test_cost_and_truth_without_a_limit_are_recorded(
    kind: str, limits: dict[str, dict[str, float]]
) -> None:
    verdict = getattr(a_gate(limits=limits), kind)(FINAL, alike(0.1, kind=kind))
    assert verdict.outcome is Outcome.RECORDED


@pytest.mark.parametrize("what", ["NaN or infinite pixels", "a black image"])
@pytest.mark.parametrize("kind", ["drift", "cost", "ground_truth"])
def test_worthless_images_are_a_regression_that_names_the_prompt(kind: str, what: str) -> None:
    gate = a_gate()
    verdict = getattr(gate, kind)(FINAL, alike(1.0, faults={"red-star": what}))
    assert verdict.outcome is Outcome.REGRESSION
    assert gate.verdicts == [verdict]
    assert f"[final] ssim_{kind}: regression: red-star: {what}" in verdict.message
    assert "file: images/limits.json" in verdict.message


@pytest.mark.parametrize("kind", ["drift", "cost", "ground_truth"])
def test_worthless_images_are_not_offered_for_acceptance(kind: str) -> None:
    verdict = getattr(a_gate(), kind)(FINAL, alike(faults={"p0": "a black image"}))
    assert "pytest benchmarks/" in verdict.next_step
    assert "--sdopt-accept" not in verdict.next_step


@pytest.mark.parametrize(
    ("device", "level", "noise"),
    [
        ("cuda", FINAL, "cuda"),
        ("cuda", BASELINE, "cuda, eager"),
        ("cpu", FINAL, "cpu"),
        ("cpu", BASELINE, "cpu"),
    ],
)
def test_the_latency_limit_is_that_of_the_levels_noise(
    device: str, level: Level, noise: str
) -> None:
    gate = a_gate(
        device=device,
        stored={level.name: STORED},
        series=series_of(STORED, STORED, level=level.name),
    )
    verdict = gate.latency(level, latency(100.0), FIRST)
    prior = LATENCY_RULE.priors[noise]
    expected = judge_by_history(100.0, [100.0, 100.0], prior, gate.comparisons)
    assert (verdict.outcome, verdict.limit) == (Outcome.PASS, expected.limit)
    assert (verdict.runs, verdict.detectable) == (2, expected.detectable)


def test_a_latency_far_below_the_stored_one_is_an_improvement() -> None:
    verdict = a_gate().latency(FINAL, latency(10.0), FIRST)
    assert (verdict.outcome, verdict.next_step) == (Outcome.IMPROVEMENT, "")


@pytest.mark.parametrize(
    ("device", "levels", "comparisons"),
    [("cpu", 0, 1), ("cpu", 9, 9), ("cuda", 0, 4), ("cuda", 1, 4), ("cuda", 9, 36)],
)
def test_all_judgements_of_a_run_share_one_error(
    device: str, levels: int, comparisons: int
) -> None:
    stored = dict.fromkeys(list(LEVELS)[:levels], STORED)
    assert Gate(device=device, stored=stored).comparisons == comparisons


@pytest.mark.parametrize(("commit", "base"), [("0123456789ab", "0123456789ab"), (None, "BASE")])
def test_a_slower_level_may_be_settled_in_pairs_or_accepted(commit: str | None, base: str) -> None:
    verdict = slower(a_gate(commit=commit))
    assert verdict.next_step.splitlines() == [
        f'pytest benchmarks/ -k "[final]" --sdopt-ab={base}  # settles it in pairs of runs',
        "  or:   pytest benchmarks/ --benchmark-autosave --sdopt-accept"
        "  # if the new value is meant",
    ]


def test_next_steps_repeat_the_choices_of_this_run() -> None:
    verdict = slower(a_gate(command="pytest benchmarks/ --sdopt-source=embedded"))
    assert verdict.next_step.count("pytest benchmarks/ --sdopt-source=embedded ") == 2


VOID = ("process 77 used the GPU too (3 MiB)", "heat held the GPU back 20 % of the time")


@pytest.mark.parametrize("comparing", [True, False])
def test_a_disturbed_time_is_void_by_name(comparing: bool) -> None:
    gate = a_gate(comparing=comparing)
    verdict = gate.latency(FINAL, replace(latency(100.0), disturbances=VOID), FIRST)
    assert verdict.outcome is Outcome.INSUFFICIENT
    assert "the measurement is void: process 77 used the GPU too" in verdict.message
    assert "heat held the GPU back" in verdict.message
    assert verdict.next_step.endswith("# on a device that nothing else uses")


def test_memory_is_void_when_another_process_used_the_gpu() -> None:
    verdict = a_gate().memory(FINAL, replace(memory(1000.0), disturbances=VOID[:1]))
    assert (verdict.outcome, verdict.metric) == (Outcome.INSUFFICIENT, "peak_allocated_mib")
    assert "void" in verdict.message


def test_what_the_gpu_did_is_kept_where_there_is_one() -> None:
    gate = a_gate()
    gate.work(FINAL, gpu_work(kernel_launches=5, gpu_busy_ms=1.5, host_syncs=2))
    kept = gate.measured["final"]
    assert (kept["kernel_launches"], kept["gpu_busy_ms"], kept["host_syncs"]) == (5, 1.5, 2)
    assert kept["kernels_by_part"] == STORED["kernels_by_part"]
    without = a_gate()
    without.work(FINAL, work())
    assert "kernel_launches" not in without.measured["final"]
    assert "kernels_by_part" not in without.measured["final"]
