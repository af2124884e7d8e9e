"""The self-test's faults change what they say, leave nothing behind, and are judged rightly."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from project import BENCHMARKS

from sdopt.gate import Gate, Limits
from sdopt.levels import FINAL, TURBO, Level
from sdopt.measure import observe, work_of
from sdopt.measure.quality import to_uint8
from sdopt.pipeline import LevelPipeline, build
from sdopt.selftest.between import (
    judge_request_fault,
    judge_round_fault,
    request_faults,
    round_faults,
)
from sdopt.selftest.engine import engine_faults
from sdopt.selftest.fault import Fault, Faulty, Finding
from sdopt.selftest.harness import Folder, HarnessFault, harness_faults
from sdopt.selftest.judging import finding, judge_optimization_fault, judge_picture_fault
from sdopt.selftest.matrix import interval, matrix, totals
from sdopt.selftest.optimizations import optimization_faults
from sdopt.selftest.pictures import picture_faults
from sdopt.soundness import statistics_of
from sdopt.sources import Source
from sdopt.verdict import ExitCode, Outcome, Verdict
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


def of_levels() -> list[Fault]:
    """Every fault that is put into a pipeline."""
    images = (*picture_faults(), *request_faults(), *round_faults())
    return [*images, *optimization_faults(), *engine_faults()]


def test_every_fault_has_a_name_of_its_own() -> None:
    ids = [fault.id for fault in (*of_levels(), *harness_faults())]
    assert len(ids) == len(set(ids))


def test_the_readme_counts_the_faults() -> None:
    faults = [fault for fault in of_levels() if fault.caught_by is not None]
    runs = [fault for fault in harness_faults() if fault.code is not ExitCode.PASS]
    number = len(faults) + len(runs) + 1  # two processes saving at once
    readme = (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    assert f"put {number} faults into the suite" in readme


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


OPTIMIZATION_FAULTS = {fault.name: fault for fault in optimization_faults()}
CHEAP = [name for name in OPTIMIZATION_FAULTS if name != "a graph break in the decoder"]


@pytest.mark.parametrize("name", CHEAP)
def test_a_fault_of_a_level_is_judged_by_what_was_seen(
    name: str, pipeline: LevelPipeline, unchanged: np.ndarray, micro_request: Request
) -> None:
    fault = OPTIMIZATION_FAULTS[name]
    suite: Any = SimpleNamespace(
        gate=Gate(), workload=SimpleNamespace(requests=[micro_request]), dtype="float32"
    )
    seen = judge_optimization_fault(fault, suite, EAGER, pipeline)
    # What needs compiled code to be missed cannot be missed by a pipeline that has none.
    shows_on_eager_code = fault.caught_by is not None and name != "compiled code not used"
    assert seen.caught is shows_on_eager_code, seen.seen
    assert np.array_equal(generate(pipeline, micro_request), unchanged)


@pytest.fixture(scope="module")
def turbo(micro_source: Source) -> LevelPipeline:
    return build(micro_source, TURBO)


@pytest.fixture(scope="module")
def turbo_work(turbo: LevelPipeline, micro_request: Request) -> dict[str, Any]:
    return {"turbo": asdict(work_of(turbo, observe(turbo, micro_request)))}


ENGINE_FAULTS = {fault.name: fault for fault in engine_faults()}
SEEN_BY_WORK = (
    *("fused UNet not used", "nothing hoisted", "every step a full one"),
    *("guidance never dropped", "drawn by diffusers' own loop"),
)


@pytest.mark.parametrize("name", ENGINE_FAULTS)
def test_a_fault_of_the_engine_is_caught_and_gone_afterwards(
    name: str, turbo: LevelPipeline, turbo_work: dict[str, Any], micro_request: Request
) -> None:
    fault = ENGINE_FAULTS[name]
    suite: Any = SimpleNamespace(
        gate=Gate(work_stored=turbo_work),
        workload=SimpleNamespace(requests=[micro_request]),
        dtype="float32",
    )
    found = judge_optimization_fault(fault, suite, TURBO, turbo)
    assert found.caught, found.seen
    assert ("effect: " in found.seen) is (fault.caught_by is not None)
    assert ("tflop " in found.seen) is (name in SEEN_BY_WORK)
    control = judge_optimization_fault(ENGINE_FAULTS["none (control)"], suite, TURBO, turbo)
    assert control.caught, control.seen


BETWEEN = {fault.id: fault for fault in (*request_faults(), *round_faults())}


@pytest.mark.parametrize("name", BETWEEN)
def test_a_fault_between_images_is_caught_and_gone_afterwards(
    name: str, pipeline: LevelPipeline, unchanged: np.ndarray, micro_request: Request
) -> None:
    fault = BETWEEN[name]
    suite: Any = SimpleNamespace(gate=Gate(device="cpu"), workload=SimpleNamespace())
    suite.workload.requests = [micro_request]
    judge = judge_request_fault if fault.group == "request" else judge_round_fault
    found = judge(fault, suite, EAGER, pipeline)
    assert found.caught, found.seen
    assert np.array_equal(generate(pipeline, micro_request), unchanged)


def test_a_fault_of_the_picture_is_judged_against_the_stored_ones(
    pipeline: LevelPipeline, unchanged: np.ndarray, micro_request: Request
) -> None:
    stored = {micro_request.name: to_uint8(unchanged)}
    suite: Any = SimpleNamespace(
        gate=Gate(),
        workload=SimpleNamespace(requests=[micro_request]),
        stored_pictures=lambda level, pictures: (stored, {}),
    )
    for name in ("none (control)", "noise of 0.03", "black"):
        assert judge_picture_fault(PICTURE_FAULTS[name], suite, EAGER, pipeline).caught, name
    missed = replace(PICTURE_FAULTS["none (control)"], caught_by="ssim_drift")
    assert not judge_picture_fault(missed, suite, EAGER, pipeline).caught


@pytest.mark.parametrize(
    "name", ["one step less", "cutoff two steps early", "cutoff two steps late", "wrong seed"]
)
def test_where_pictures_cannot_show_it_work_has_to(
    name: str, pipeline: LevelPipeline, unchanged: np.ndarray, micro_request: Request
) -> None:
    """As in float16, whose limit is below what such a fault does to a picture."""
    work = {"final": asdict(work_of(pipeline, observe(pipeline, micro_request)))}
    stored = {micro_request.name: to_uint8(unchanged)}
    suite: Any = SimpleNamespace(
        gate=Gate(limits={"final": Limits(drift=-1.0)}, work_stored=work),
        workload=SimpleNamespace(requests=[micro_request]),
        stored_pictures=lambda level, pictures: (stored, {}),
    )
    found = judge_picture_fault(PICTURE_FAULTS[name], suite, EAGER, pipeline)
    assert found.caught is (name != "wrong seed"), found.seen
    assert found.expected == ("unet_evaluations" if found.caught else "ssim_drift")
    assert np.array_equal(generate(pipeline, micro_request), unchanged)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """What a harness run finds, with a stored run of one benchmark."""
    run = tmp_path / "baselines" / "history" / "cpu" / "embedded" / "0001_first.json"
    run.parent.mkdir(parents=True)
    entry = {"extra_info": {}, "stats": statistics_of([0.5])}
    content = {"sdopt": {"hardware": "cpu"}, "machine_info": {}, "benchmarks": [entry]}
    run.write_text(json.dumps(content))
    shutil.copytree(BENCHMARKS, tmp_path / "benchmarks")
    return Folder(path=tmp_path)


@pytest.mark.parametrize("fault", harness_faults(), ids=lambda fault: fault.name)
def test_a_fault_of_the_harness_changes_files_or_options(
    fault: HarnessFault, folder: Folder
) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.path.rglob("*.*") if path.is_file()}

    before = contents()
    fault.change(folder)
    changed = contents() != before
    by_option = fault.options != ("--benchmark-compare",)
    assert (changed or by_option) is (fault.code is not ExitCode.PASS)
