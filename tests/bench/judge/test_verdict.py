"""A verdict says what was judged and what to do next; a run ends with the gravest of them."""

from __future__ import annotations

from itertools import permutations

import pytest

from sdopt.bench.judge.verdict import (
    PASSING,
    ExitCode,
    Outcome,
    Verdict,
    exit_code,
    fault,
    first_failure,
    recorded,
    void,
)


def verdict(outcome: Outcome, reason: str = "why") -> Verdict:
    return Verdict(level="final", metric="effect", outcome=outcome, reason=reason)


@pytest.mark.parametrize(
    ("outcome", "passed"),
    [
        (Outcome.PASS, True),
        (Outcome.IMPROVEMENT, True),
        (Outcome.RECORDED, True),
        (Outcome.INSUFFICIENT, False),
        (Outcome.REGRESSION, False),
        (Outcome.FAULT, False),
    ],
)
def test_a_verdict_passes_unless_it_regressed_or_could_not_be_reached(
    outcome: Outcome, passed: bool
) -> None:
    assert verdict(outcome).passed is passed
    assert (outcome in PASSING) is passed


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        (Outcome.PASS, "pass"),
        (Outcome.IMPROVEMENT, "improvement"),
        (Outcome.RECORDED, "recorded"),
        (Outcome.INSUFFICIENT, "insufficient data"),
        (Outcome.REGRESSION, "regression"),
        (Outcome.FAULT, "fault"),
    ],
)
def test_a_message_says_the_outcome_in_words(outcome: Outcome, word: str) -> None:
    assert verdict(outcome).message == f"[final] effect: {word}: why"


def test_the_gravest_verdict_speaks_for_all() -> None:
    ranked = [
        Outcome.REGRESSION,
        Outcome.FAULT,
        Outcome.INSUFFICIENT,
        Outcome.IMPROVEMENT,
        Outcome.PASS,
        Outcome.RECORDED,
    ]
    assert set(ranked) == set(Outcome)
    for pair in permutations(ranked, 2):
        graver = min(pair, key=ranked.index)
        assert first_failure([verdict(outcome) for outcome in pair]).outcome is graver


def test_of_equals_the_first_speaks() -> None:
    verdicts = [verdict(Outcome.PASS), verdict(Outcome.FAULT, "a"), verdict(Outcome.FAULT, "b")]
    assert first_failure(verdicts).reason == "a"


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([], 0),
        ([Outcome.PASS, Outcome.IMPROVEMENT, Outcome.RECORDED], 0),
        ([Outcome.PASS, Outcome.INSUFFICIENT], 10),
        ([Outcome.INSUFFICIENT, Outcome.FAULT], 2),
        ([Outcome.INSUFFICIENT, Outcome.FAULT, Outcome.REGRESSION], 1),
        ([Outcome.REGRESSION, Outcome.PASS], 1),
    ],
)
def test_a_run_ends_with_the_code_of_its_gravest_verdict(
    outcomes: list[Outcome], code: int
) -> None:
    assert exit_code([verdict(outcome) for outcome in outcomes]) == code


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([], ExitCode.FAULT),
        ([Outcome.PASS], ExitCode.FAULT),
        ([Outcome.INSUFFICIENT], ExitCode.FAULT),
        ([Outcome.REGRESSION], ExitCode.REGRESSION),
    ],
)
def test_a_test_without_a_verdict_is_a_fault(outcomes: list[Outcome], code: ExitCode) -> None:
    assert exit_code([verdict(outcome) for outcome in outcomes], broken=True) is code


@pytest.mark.parametrize(
    ("metric", "shown"),
    [
        ("latency_ms", "measured 1000 ms"),
        ("gpu_busy_ms", "measured 1000 ms"),
        ("peak_allocated_mib", "measured 1000 MiB"),
        ("tflop", "measured 1000 1e12"),
        ("unet_evaluations", "measured 1000"),
    ],
)
def test_a_message_names_the_unit(metric: str, shown: str) -> None:
    assert recorded("final", metric, 1000.0).message.splitlines()[1].strip() == shown


def test_a_message_holds_all_that_is_needed_to_act() -> None:
    whole = Verdict(
        level="final",
        metric="latency_ms",
        outcome=Outcome.REGRESSION,
        reason="why",
        measured=130.0,
        stored=100.0,
        limit=125.0,
        file="history/0007_run.json",
        next_step="pytest",
    )
    assert whole.message.splitlines() == [
        "[final] latency_ms: regression: why",
        "  measured 130 ms, stored 100 ms, limit 125 ms",
        "  file: history/0007_run.json",
        "  next: pytest",
    ]


def test_a_verdict_is_short_where_pytest_prints_it() -> None:
    assert repr(fault("final", "tflop", "long" * 99)) == "<Verdict [final] tflop: fault>"


def test_a_fault_keeps_the_numbers_it_could_not_judge() -> None:
    found = fault("final", "tflop", "why", 1.0, 2.0)
    assert (found.outcome, found.measured, found.stored) == (Outcome.FAULT, 1.0, 2.0)


def test_a_void_measurement_is_insufficient_data_and_names_each_disturbance() -> None:
    found = void("final", "latency_ms", ("another process", "heat"))
    assert found.outcome is Outcome.INSUFFICIENT
    assert found.reason == "the measurement is void: another process; heat"
    assert found.measured is None
