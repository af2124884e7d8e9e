"""The ladder table: one aligned line per measured level, and what failed in it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sdopt.bench.judge.verdict import Outcome, Verdict
from sdopt.bench.report.terminal import blind_note, ladder_table, power_note, summary
from sdopt.levels import LEVELS

MEASURED: dict[str, dict[str, Any]] = {
    "baseline": {"latency_ms": 1000.04, "unet_evaluations": 60, "ssim_drift": 1.0},
    "dpm-20": {
        "latency_ms": 400.0,
        "unet_evaluations": 40,
        "ssim_drift": 0.99999951,
        "ssim_cost": 0.41234,
        "cost_is_comparable": False,
        "ssim_ground_truth": 0.9,
    },
    "final": {"latency_ms": 250.0, "ssim_cost": 0.95, "cost_is_comparable": True},
}


def verdict(outcome: Outcome, metric: str = "latency_ms", level: str = "final") -> Verdict:
    return Verdict(level=level, metric=metric, outcome=outcome, reason="why")


def cells(measured: dict[str, dict[str, Any]], *verdicts: Verdict) -> dict[str, dict[str, str]]:
    """The table's cells by level and heading: a new column changes nothing here."""
    heading, *lines = ladder_table(list(LEVELS), measured, verdicts)
    names = re.split(r"\s{2,}", heading)
    rows = [dict(zip(names, re.split(r"\s{2,}", line), strict=True)) for line in lines]
    return {row["level"]: row for row in rows}


def test_a_line_holds_time_work_and_likeness() -> None:
    rows = cells(MEASURED, verdict(Outcome.PASS, level="baseline"))
    row = rows["baseline"]
    assert (row["ms"], row["speed-up"], row["UNet evals"]) == ("1000.0", "1.00x", "60")
    assert (row["drift"], row["cost"], row["verdict"]) == ("1.000000", "-", "pass")
    assert (rows["dpm-20"]["ms"], rows["dpm-20"]["speed-up"]) == ("400.0", "2.50x")


def test_a_cost_that_is_not_comparable_stands_in_parentheses() -> None:
    rows = cells(MEASURED)
    assert rows["dpm-20"]["cost"] == "(0.4123)"
    assert rows["final"]["cost"] == "0.9500"


def test_a_missing_cost_has_no_parentheses() -> None:
    assert cells({"dpm-20": {"cost_is_comparable": False}})["dpm-20"]["cost"] == "-"


def test_what_was_not_measured_is_a_dash() -> None:
    row = cells({"final": {}})["final"]
    assert {text for name, text in row.items() if name != "level"} == {"-"}


def test_a_level_with_a_verdict_and_no_number_has_a_line() -> None:
    rows = cells({}, verdict(Outcome.FAULT, "ssim_drift"))
    assert rows["final"]["verdict"] == "FAIL ssim_drift"


@pytest.mark.parametrize("base", [{}, {"latency_ms": None}])
def test_without_a_baseline_time_there_is_no_speed_up(base: dict[str, Any]) -> None:
    row = cells({"baseline": base, "final": {"latency_ms": 5.0}})["final"]
    assert (row["ms"], row["speed-up"]) == ("5.0", "-")


def test_what_only_a_gpu_has_is_shown_where_there_is_one() -> None:
    of_gpu = {"gpu_busy_ms": 393.2, "kernel_launches": 36258, "peak_allocated_mib": 2630.4}
    row = cells({"final": {"latency_ms": 130.0, **of_gpu}})["final"]
    assert (row["GPU ms"], row["kernels"], row["alloc MiB"]) == ("393.2", "36258", "2630")
    assert "GPU ms" not in cells(MEASURED)["final"]


def test_lines_stand_in_the_order_of_the_ladder() -> None:
    shuffled = dict(reversed(MEASURED.items()))
    assert list(cells(shuffled)) == ["baseline", "dpm-20", "final"]


def test_a_verdict_stands_in_the_line_of_its_level_only() -> None:
    rows = cells(MEASURED, verdict(Outcome.REGRESSION, "tflop", "final"))
    assert (rows["final"]["verdict"], rows["baseline"]["verdict"]) == ("FAIL tflop", "-")


def test_columns_are_aligned_and_lines_end_without_blanks() -> None:
    lines = ladder_table(list(LEVELS), MEASURED, [verdict(Outcome.PASS)])
    assert {line.index(".") for line in lines[1:]} == {lines[1].index(".")}
    assert [line for line in lines if line != line.rstrip()] == []


def test_nothing_measured_gives_no_table() -> None:
    assert ladder_table(list(LEVELS), {}, []) == []


@pytest.mark.parametrize(
    ("verdicts", "text"),
    [
        ([], "-"),
        ([verdict(Outcome.PASS)], "pass"),
        ([verdict(Outcome.RECORDED)], "pass (latency recorded)"),
        ([verdict(Outcome.RECORDED, "ssim_cost")], "pass"),
        (
            [verdict(Outcome.PASS, "tflop"), verdict(Outcome.IMPROVEMENT)],
            "pass (better than stored: latency_ms)",
        ),
        ([verdict(Outcome.REGRESSION)], "FAIL latency_ms"),
        ([verdict(Outcome.INSUFFICIENT)], "FAIL latency_ms"),
        ([verdict(Outcome.RECORDED), verdict(Outcome.FAULT, "tflop")], "FAIL tflop"),
        (
            [verdict(Outcome.FAULT, "tflop"), verdict(Outcome.FAULT, "effect")],
            "FAIL tflop, effect",
        ),
        ([verdict(Outcome.FAULT, "tflop"), verdict(Outcome.REGRESSION, "tflop")], "FAIL tflop"),
    ],
)
def test_a_summary_names_the_metrics_that_failed_once(verdicts: list[Verdict], text: str) -> None:
    assert summary(verdicts) == text


def judged(level: str, detectable: float, outcome: Outcome = Outcome.PASS) -> Verdict:
    return Verdict(
        level=level, metric="latency_ms", outcome=outcome, reason="", detectable=detectable
    )


def test_a_pass_that_could_see_little_is_told_with_what_to_do() -> None:
    verdicts = [judged("baseline", 1.177), judged("final", 0.03)]
    lines = blind_note(verdicts, "pytest benchmarks/ --benchmark-autosave")
    assert "baseline +118 %" in lines[0]
    assert "final" not in lines[0]
    assert "tuned none" in blind_note([judged("tuned", 16742.08)], "")[0]
    assert "pytest benchmarks/ --benchmark-autosave" in lines[1]
    assert blind_note([judged("final", 0.03)], "") == []
    assert blind_note([judged("final", 9.0, Outcome.REGRESSION)], "") == []


def test_levels_at_the_power_limit_are_named() -> None:
    measured = {
        "final": {"latency_ms": 1.0},
        "fused": {"gpu": {"power_limited": 0.004}},
        "hoisted": {"gpu": {"power_limited": 0.33}},
    }
    (line,) = power_note(measured)
    assert line.endswith(": hoisted 33 % of its time")
    assert power_note({"fused": measured["fused"]}) == []
