"""Each rule passes what is as good as stored, and fails closed on what it cannot judge."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sdopt.bench.judge.rules import (
    at_least,
    at_most,
    by_history,
    by_pairs,
    exactly,
    is_sound,
    outcome_of,
)
from sdopt.bench.judge.statistics import PairedPlan, judge_by_history
from sdopt.bench.judge.verdict import Outcome, Verdict
from sdopt.bench.metrics import HISTORY_RULES
from sdopt.bench.metrics.metric import Better, Prior
from sdopt.bench.metrics.time import LATENCY_PAIRS, LATENCY_RULE, noise_class
from sdopt.levels import BASELINE, FINAL, TUNED, Level

NAN, INF = math.nan, math.inf
PRIOR = Prior(spread=0.02, least_effect=0.01)
ONE = judge_by_history(100.0, [100.0], PRIOR)


def judged(measured: float | None, *stored: float, comparisons: int = 1) -> Verdict:
    return by_history("final", "latency_ms", measured, stored, PRIOR, comparisons)


# By history


@pytest.mark.parametrize(
    ("measured", "outcome"),
    [
        (1e-9, Outcome.IMPROVEMENT),
        (math.nextafter(ONE.lower_limit, 0.0), Outcome.IMPROVEMENT),
        (ONE.lower_limit, Outcome.PASS),
        (100.0, Outcome.PASS),
        (ONE.limit, Outcome.PASS),
        (math.nextafter(ONE.limit, INF), Outcome.REGRESSION),
        (1e9, Outcome.REGRESSION),
    ],
)
def test_a_value_passes_up_to_the_limit_of_its_history(measured: float, outcome: Outcome) -> None:
    verdict = judged(measured, 100.0)
    assert verdict.outcome is outcome
    assert verdict.passed is (outcome is not Outcome.REGRESSION)
    assert (verdict.measured, verdict.stored) == (measured, pytest.approx(100.0))
    assert (verdict.limit, verdict.detectable, verdict.runs) == (ONE.limit, ONE.detectable, 1)


def test_a_history_is_judged_by_all_its_runs() -> None:
    verdict = judged(102.0, 100.0, 104.0, 99.0, 101.0)
    assert (verdict.stored, verdict.runs) == (pytest.approx(100.5, rel=1e-4), 4)
    assert verdict.outcome is Outcome.PASS


def test_more_comparisons_widen_the_limit() -> None:
    one, many = judged(100.0, 100.0), judged(100.0, 100.0, comparisons=36)
    assert one.limit is not None
    assert many.limit is not None
    assert many.limit > one.limit


def test_a_reason_says_how_far_the_value_moved_and_what_would_be_seen() -> None:
    assert judged(130.0, 100.0).reason == (
        f"+30.0 % against the stored run, {ONE.limit - 100:.1f} % may be chance, "
        f"sees {100 * ONE.detectable:.1f} % in 4 of 5 runs"
    )
    assert judged(90.0, 100.0, 100.0).reason.startswith(
        "-10.0 % against the median of 2 stored runs, "
    )


CREEPING = [100.0 * 1.004**n * (1 + 0.01 * (-1) ** n) for n in range(20)]


def test_a_slow_drift_is_a_regression_that_says_so() -> None:
    verdict = judged(107.0, *CREEPING)
    assert verdict.limit is not None
    assert verdict.limit > 107.0
    assert verdict.outcome is Outcome.REGRESSION
    assert verdict.reason.startswith("a slow drift: the newest runs are ")
    assert "% above the best ones; +" in verdict.reason


def test_whoever_repairs_a_drift_is_not_blamed_for_it() -> None:
    assert judged(100.0, *CREEPING).outcome is Outcome.PASS


@pytest.mark.parametrize("value", [NAN, INF, -INF, 0.0, 0, -1.0, None])
def test_a_measured_value_that_cannot_be_judged_is_a_fault(value: float | None) -> None:
    verdict = judged(value, 100.0)
    assert verdict.outcome is Outcome.FAULT
    assert "measured value" in verdict.reason
    assert verdict.stored == 100.0


@pytest.mark.parametrize("value", [NAN, INF, -INF, 0.0, 0, -1.0])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_single_stored_value_that_cannot_be_judged_is_a_fault(value: float, place: int) -> None:
    stored = [100.0, 101.0, 102.0]
    stored[place] = value
    verdict = judged(100.0, *stored)
    assert verdict.outcome is Outcome.FAULT
    assert verdict.reason == f"the stored value is {value!r}"
    assert repr(verdict.stored) == repr(value)


def test_without_a_stored_value_there_is_nothing_to_judge_by() -> None:
    verdict = judged(100.0)
    assert (verdict.outcome, verdict.reason) == (Outcome.FAULT, "there is no stored value")


@pytest.mark.parametrize(
    ("device", "level", "name"),
    [
        ("cuda", BASELINE, "cuda, eager"),
        ("cuda", TUNED, "cuda, eager"),
        ("cuda", FINAL, "cuda"),
        ("cpu", BASELINE, "cpu"),
        ("cpu", FINAL, "cpu"),
    ],
)
def test_an_eager_level_on_cuda_waits_for_the_host(device: str, level: Level, name: str) -> None:
    assert noise_class(device, level) == name
    assert name in LATENCY_RULE.priors
    assert name in LATENCY_PAIRS.matters


@pytest.mark.parametrize("name", HISTORY_RULES)
def test_every_prior_is_a_spread_with_a_least_effect(name: str) -> None:
    priors = HISTORY_RULES[name].priors.values()
    assert all(0 < prior.spread < 0.5 for prior in priors)
    assert all(0 < prior.least_effect < 0.1 for prior in priors)


@pytest.mark.parametrize(
    ("better", "less", "more"),
    [
        (Better.LOWER, Outcome.IMPROVEMENT, Outcome.REGRESSION),
        (Better.HIGHER, Outcome.REGRESSION, Outcome.IMPROVEMENT),
        (Better.NEITHER, Outcome.REGRESSION, Outcome.REGRESSION),
    ],
)
def test_the_metric_says_which_change_is_an_improvement(
    better: Better, less: Outcome, more: Outcome
) -> None:
    assert [outcome_of(change, better) for change in (-1, 0, 1)] == [less, Outcome.PASS, more]
    assert exactly("final", "tflop", 1.0, 2.0, "", better).outcome is less
    assert exactly("final", "tflop", 2.0, 1.0, "", better).outcome is more
    assert exactly("final", "tflop", NAN, 1.0, "", Better.LOWER).outcome is Outcome.REGRESSION


@pytest.mark.parametrize(
    ("value", "sound"),
    [
        (1, True),
        (1e-300, True),
        (0, False),
        (-1.0, False),
        (NAN, False),
        (INF, False),
        (-INF, False),
        (None, False),
        ("1", False),
    ],
)
def test_only_a_finite_number_above_zero_can_be_judged(value: Any, sound: bool) -> None:
    assert is_sound(value) is sound


# By pairs


PLAN = PairedPlan()
BASE = [100.0, 101.0, 99.0, 100.5, 99.5, 100.2, 99.8, 100.0]


def paired(*ratios: float) -> Verdict | None:
    head = [value * ratio for value, ratio in zip(BASE, ratios, strict=False)]
    return by_pairs("final", "latency_ms", BASE[: len(head)], head, PLAN)


@pytest.mark.parametrize(
    ("ratios", "outcome"),
    [
        ((1.0, 1.001, 0.999, 1.0), Outcome.PASS),
        ((1.05, 1.051, 1.049, 1.05), Outcome.REGRESSION),
        ((0.95, 0.951, 0.949, 0.95), Outcome.IMPROVEMENT),
        ((1.0, 1.5, 0.7, 1.1, 0.9, 1.4, 0.6, 1.2), Outcome.INSUFFICIENT),
    ],
)
def test_pairs_end_with_one_of_four_answers(ratios: tuple[float, ...], outcome: Outcome) -> None:
    verdict = paired(*ratios)
    assert verdict is not None
    assert verdict.outcome is outcome
    assert verdict.runs == len(ratios)
    assert verdict.detectable is not None
    assert verdict.detectable > 0


def test_a_paired_reason_bounds_the_change_and_says_what_matters() -> None:
    verdict = paired(1.05, 1.051, 1.049, 1.05)
    assert verdict is not None
    assert verdict.reason.startswith("+5.00 % in 4 pairs of fresh runs, between +")
    assert "3 % matter, sees " in verdict.reason
    assert verdict.reason.endswith(" % in 4 of 5 such comparisons")


@pytest.mark.parametrize(
    "ratios", [(1.0, 1.0), (1.0,) * 5, (1.0, 1.1, 0.9, 1.0), (1.0, 1.1, 0.9, 1.0, 1.1, 0.9)]
)
def test_pairs_that_do_not_say_enough_yet_ask_for_more(ratios: tuple[float, ...]) -> None:
    assert paired(*ratios) is None


@pytest.mark.parametrize("value", [NAN, INF, 0.0, -1.0])
@pytest.mark.parametrize("side", ["base", "head"])
def test_a_paired_value_that_cannot_be_judged_is_a_fault_at_once(value: float, side: str) -> None:
    sides = {"base": [100.0], "head": [100.0]}
    sides[side] = [value]
    verdict = by_pairs("final", "latency_ms", sides["base"], sides["head"], PLAN)
    assert verdict is not None
    assert (verdict.outcome, verdict.reason) == (
        Outcome.FAULT,
        f"a value of the {side} is {value!r}",
    )


# Exactly


@pytest.mark.parametrize(
    ("measured", "stored", "outcome"),
    [
        (29, 29, Outcome.PASS),
        (0, 0, Outcome.PASS),
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


def test_exactly_says_what_changed_inside() -> None:
    changes = "unet called 20 -> 19 times"
    assert exactly("final", "tflop", 1.0, 1.0, changes).reason == "equal"
    assert exactly("final", "tflop", 1.0, 2.0).reason == "has to equal what is stored"
    assert exactly("final", "tflop", 1.0, 2.0, changes).reason == (
        "has to equal what is stored: unet called 20 -> 19 times"
    )


# At least


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
    ("measured", "limit", "outcome"),
    [
        (0.1, 0.1, Outcome.PASS),
        (math.nextafter(0.1, 1), 0.1, Outcome.REGRESSION),
        (9.0, None, Outcome.RECORDED),
        (NAN, 0.1, Outcome.FAULT),
        (INF, 0.1, Outcome.FAULT),
    ],
)
def test_at_most_passes_up_to_its_limit(
    measured: float, limit: float | None, outcome: Outcome
) -> None:
    verdict = at_most("final", "block_drift", measured, limit, "what")
    assert (verdict.outcome, verdict.limit) == (outcome, limit)
    assert repr(verdict.measured) == repr(measured)
