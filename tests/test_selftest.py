"""The self-test's faults change what they say, leave nothing behind, and are judged rightly."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sdopt.levels import FINAL, Level
from sdopt.pipeline import LevelPipeline, build
from sdopt.selftest.fault import Fault, Faulty, Finding
from sdopt.selftest.harness import all_caught, harness_faults
from sdopt.selftest.judging import finding
from sdopt.selftest.matrix import interval, matrix, totals
from sdopt.selftest.optimizations import optimization_faults
from sdopt.selftest.pictures import picture_faults
from sdopt.sources import Source
from sdopt.verdict import Outcome, Verdict
from sdopt.workload import Request, generate

EAGER: Level = replace(FINAL, compiled=False, steps=6)
PICTURE_FAULTS = {fault.name: fault for fault in picture_faults()}


@pytest.fixture(scope="module")
def pipeline(micro_source: Source) -> LevelPipeline:
    return build(micro_source, EAGER)


@pytest.fixture(scope="module")
def unchanged(pipeline: LevelPipeline, micro_request: Request) -> np.ndarray:
    return generate(pipeline, micro_request)


@pytest.mark.parametrize("name", PICTURE_FAULTS)
def test_a_fault_changes_the_picture_and_is_gone_afterwards(
    name: str, pipeline: LevelPipeline, unchanged: np.ndarray, micro_request: Request
) -> None:
    fault = PICTURE_FAULTS[name]
    with fault.inject(pipeline) as faulty:
        changed = generate(faulty, micro_request)
    same = np.array_equal(changed, unchanged)
    assert same is (fault.caught_by is None)
    assert np.array_equal(generate(pipeline, micro_request), unchanged)


def test_every_fault_has_a_name_of_its_own() -> None:
    ids = [f.id for f in (*picture_faults(), *optimization_faults(), *harness_faults())]
    assert len(ids) == len(set(ids))


def test_a_faulty_pipeline_is_otherwise_the_original(pipeline: LevelPipeline) -> None:
    assert Faulty(pipeline).unet is pipeline.unet


@contextmanager
def nothing(pipeline: LevelPipeline) -> Any:
    yield pipeline


def a_fault(caught_by: str | None, says: str = "") -> Fault:
    return Fault(group="picture", name="odd", inject=nothing, caught_by=caught_by, says=says)


def verdict(metric: str, outcome: Outcome, reason: str = "why") -> Verdict:
    return Verdict(level="final", metric=metric, outcome=outcome, reason=reason)


@pytest.mark.parametrize(
    ("fault", "verdicts", "caught"),
    [
        (a_fault("effect"), [verdict("effect", Outcome.REGRESSION)], True),
        (a_fault("effect"), [verdict("effect", Outcome.PASS)], False),
        (a_fault("effect"), [verdict("tflop", Outcome.REGRESSION)], False),
        (a_fault("effect", "decoder"), [verdict("effect", Outcome.REGRESSION, "unet")], False),
        (a_fault("effect", "decoder"), [verdict("effect", Outcome.REGRESSION, "decoder")], True),
        (a_fault(None), [verdict("effect", Outcome.PASS)], True),
        (a_fault(None), [verdict("effect", Outcome.FAULT)], False),
        (a_fault("effect"), [], False),
    ],
)
def test_a_fault_is_caught_by_the_verdict_that_has_to(
    fault: Fault, verdicts: list[Verdict], caught: bool
) -> None:
    assert finding(fault, verdicts).caught is caught


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 40, 0.0, 0.0881), (40, 40, 0.9119, 1.0), (5, 10, 0.1871, 0.8129)],
)
def test_the_interval_is_that_of_clopper_and_pearson(
    successes: int, trials: int, low: float, high: float
) -> None:
    assert interval(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_the_matrix_shows_what_was_missed() -> None:
    findings = [
        Finding(id="picture: blur", caught=True, expected="ssim_drift", seen="ssim_drift 0.9"),
        Finding(id="harness: a | b", caught=False, expected="exit 2", seen="exit 0:\nlong | text"),
    ]
    lines = matrix(findings)
    assert lines[2] == "| picture: blur | ssim_drift | yes | ssim_drift 0.9 |"
    assert lines[3].endswith("| exit 2 | **no** | exit 0: |")
    assert totals(findings) == [
        "picture: 1 of 1 right (95 % interval 3 to 100 %)",
        "harness: 0 of 1 right (95 % interval 0 to 98 %)",
    ]
    assert not all_caught(findings)
    assert all_caught(findings[:1])
