"""The self-test's faults change what they say, leave nothing behind, and are judged rightly."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from project import BENCHMARKS

from sdopt.bench.faults import harness
from sdopt.bench.faults.between import (
    judge_request_fault,
    judge_round_fault,
    request_faults,
    round_faults,
)
from sdopt.bench.faults.engine import engine_faults, float8_faults
from sdopt.bench.faults.fault import Fault, Faulty, Finding
from sdopt.bench.faults.harness import Folder, HarnessFault, harness_faults
from sdopt.bench.faults.images import image_faults
from sdopt.bench.faults.judging import (
    finding,
    judge_image_fault,
    judge_numeric_fault,
    judge_optimization_fault,
    judge_repeat_fault,
)
from sdopt.bench.faults.matrix import interval, matrix, totals
from sdopt.bench.faults.numerics import (
    RACING_KEY,
    RACING_TILE,
    numeric_faults,
    racing_faults,
    racing_tile_fault,
)
from sdopt.bench.faults.optimizations import optimization_faults
from sdopt.bench.judge.gate import Gate
from sdopt.bench.judge.verdict import ExitCode, Outcome, Verdict
from sdopt.bench.measure import observe, work_of
from sdopt.bench.measure.double import double_latents
from sdopt.bench.measure.latents import generate_with_latents
from sdopt.bench.measure.quality import to_uint8
from sdopt.bench.plugin import selftest
from sdopt.bench.stored.soundness import statistics_of
from sdopt.engine import cards
from sdopt.engine.tables import tuned
from sdopt.engine.tiles import Tile
from sdopt.levels import FINAL, TURBO, TURBO_FLOAT8, Level
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.workload import Request, generate
from sdopt.weights.sources import Source

EAGER: Level = replace(FINAL, compiled=False, steps=6, cfg_cutoff=0.4)
IMAGE_FAULTS = {fault.name: fault for fault in image_faults()}


@pytest.fixture(scope="module")
def pipeline(micro_source: Source) -> LevelPipeline:
    return build(micro_source, EAGER)


@pytest.fixture(scope="module")
def unchanged(pipeline: LevelPipeline, micro_request: Request) -> np.ndarray:
    return generate(pipeline, micro_request)


@pytest.mark.parametrize("name", IMAGE_FAULTS)
def test_a_fault_changes_the_image_and_is_gone_afterwards(
    name: str, pipeline: LevelPipeline, unchanged: np.ndarray, micro_request: Request
) -> None:
    fault = IMAGE_FAULTS[name]
    with fault.inject(pipeline) as faulty:
        changed = generate(faulty, micro_request)
    same = np.array_equal(changed, unchanged)
    assert same is (fault.caught_by is None)
    assert np.array_equal(generate(pipeline, micro_request), unchanged)


def numerics(dtype: str = "float32") -> list[Fault]:
    """Those of both levels that the self-test puts them into, on a CPU."""
    levels = ("final", "turbo")
    of_dtype = [fault for level in levels for fault in numeric_faults(level, dtype)]
    return [*of_dtype, *(fault for level in levels for fault in racing_faults(level, "cpu"))]


def of_levels() -> list[Fault]:
    """Every fault that is put into a pipeline."""
    images = (*image_faults(), *request_faults(), *round_faults())
    return [
        *images, *optimization_faults(), *engine_faults(), *float8_faults(), *numerics()
    ]  # fmt: skip


def test_every_fault_has_a_name_of_its_own() -> None:
    ids = [fault.id for fault in (*of_levels(), *harness_faults())]
    assert len(ids) == len(set(ids))


def test_the_page_of_the_self_test_counts_the_faults() -> None:
    faults = [fault for fault in of_levels() if fault.caught_by is not None]
    runs = [fault for fault in harness_faults() if fault.code is not ExitCode.PASS]
    number = len(faults) + len(runs) + 1  # two processes saving at once
    page = BENCHMARKS.parent / "docs" / "evidence" / "self-test.md"
    assert f"puts {number} faults into the suite" in page.read_text(encoding="utf-8")


def test_a_faulty_pipeline_is_otherwise_the_original(pipeline: LevelPipeline) -> None:
    assert Faulty(pipeline).unet is pipeline.unet


@contextmanager
def nothing(pipeline: LevelPipeline) -> Any:
    yield pipeline


def a_fault(caught_by: str | None, says: str = "") -> Fault:
    return Fault(group="image", name="odd", inject=nothing, caught_by=caught_by, says=says)


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
        Finding(id="image: blur", caught=True, expected="ssim_drift", seen="ssim_drift 0.9"),
        Finding(id="harness: a | b", caught=False, expected="exit 2", seen="exit 0:\nlong | text"),
    ]
    lines = matrix(findings)
    assert lines[2] == "| image: blur | ssim_drift | yes | ssim_drift 0.9 |"
    assert lines[3].endswith("| exit 2 | **no** | exit 0: |")
    assert totals(findings) == [
        "image: 1 of 1 right (95 % interval 3 to 100 %)",
        "harness: 0 of 1 right (95 % interval 0 to 98 %)",
    ]


def session_like(pipeline: LevelPipeline, request: Request, gate: Gate) -> Any:
    """Stands for a session of one request with nothing stored."""
    run = SimpleNamespace(
        workload=SimpleNamespace(requests=[request]), dtype="float32", source=pipeline.source
    )
    return SimpleNamespace(gate=gate, run=run)


OPTIMIZATION_FAULTS = {fault.name: fault for fault in optimization_faults()}
CHEAP = [name for name in OPTIMIZATION_FAULTS if name != "a graph break in the decoder"]


@pytest.mark.parametrize("name", CHEAP)
def test_a_fault_of_a_level_is_judged_by_what_was_seen(
    name: str, pipeline: LevelPipeline, unchanged: np.ndarray, micro_request: Request
) -> None:
    fault = OPTIMIZATION_FAULTS[name]
    session = session_like(pipeline, micro_request, Gate())
    seen = judge_optimization_fault(fault, session, EAGER, pipeline)
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
    "half of the steps full ones",
    *("guidance never dropped", "generated by diffusers' own loop"),
)


@pytest.mark.parametrize("name", ENGINE_FAULTS)
def test_a_fault_of_the_engine_is_caught_and_gone_afterwards(
    name: str, turbo: LevelPipeline, turbo_work: dict[str, Any], micro_request: Request
) -> None:
    fault = ENGINE_FAULTS[name]
    session = session_like(turbo, micro_request, Gate(work_stored=turbo_work))
    found = judge_optimization_fault(fault, session, TURBO, turbo)
    assert found.caught, found.seen
    assert ("effect: " in found.seen) is (fault.caught_by is not None)
    assert ("tflop " in found.seen) is (name in SEEN_BY_WORK)
    control = judge_optimization_fault(ENGINE_FAULTS["none (control)"], session, TURBO, turbo)
    assert control.caught, control.seen


FLOAT8_FAULTS = {fault.name: fault for fault in float8_faults()}


@pytest.mark.parametrize("name", FLOAT8_FAULTS)
def test_a_fault_of_float8_is_caught(
    name: str, turbo_float8: LevelPipeline, micro_request: Request
) -> None:
    stored = {"turbo-float8": asdict(work_of(turbo_float8, observe(turbo_float8, micro_request)))}
    session = session_like(turbo_float8, micro_request, Gate(work_stored=stored))
    found = judge_optimization_fault(FLOAT8_FAULTS[name], session, TURBO_FLOAT8, turbo_float8)
    assert found.caught, found.seen


@pytest.fixture(scope="module")
def turbo_float8(micro_source: Source) -> LevelPipeline:
    return build(micro_source, TURBO_FLOAT8)


def standing_in(pipeline: LevelPipeline, image: np.ndarray, request: Request) -> Any:
    """A session of one request that has what the pipeline generates without a fault stored."""
    generated, double = generate_with_latents(pipeline, request), double_latents(pipeline, request)
    assert np.array_equal(generated.image, image)

    def stored_latents(level: Level, latents: Any, *, double: bool = False) -> Any:
        return {request.name: kept[double]}, {}

    kept = {False: generated.latents, True: double}
    limits = {pipeline.level.name: {"drift": 0.9, "latents": 1e-6, "float64": 1e-12}}
    session = session_like(pipeline, request, Gate(limits=limits))
    session.store = SimpleNamespace(
        images=lambda level, images: ({request.name: to_uint8(image)}, {}),
        latents=stored_latents,
    )
    return session


NUMERIC_FAULTS = [fault.name for fault in numeric_faults("final", "float32")]


@pytest.mark.parametrize("level", ["final", "turbo"])
@pytest.mark.parametrize("name", NUMERIC_FAULTS)
def test_a_fault_of_arithmetic_is_seen_and_gone_afterwards(
    name: str, level: str, pipeline: LevelPipeline, turbo: LevelPipeline, micro_request: Request
) -> None:
    generating = {"final": pipeline, "turbo": turbo}[level]
    before = generate(generating, micro_request)
    session = standing_in(generating, before, micro_request)
    fault = next(one for one in numeric_faults(level, "float32") if one.name == name)
    # Compiled or not is no question of these faults; this pipeline is not.
    found = judge_numeric_fault(fault, session, generating.level, generating)
    assert found.caught, found.seen
    assert ("latent_drift_float64" in found.seen) is (fault.caught_by is not None)
    assert ("times that" in found.seen) is (fault.caught_by is not None)
    assert ("effect: " in found.seen) is ("effect" in fault.and_by)
    assert np.array_equal(generate(generating, micro_request), before)


@pytest.mark.parametrize("level", ["final", "turbo"])
def test_a_race_is_seen_by_generating_twice(
    level: str, pipeline: LevelPipeline, turbo: LevelPipeline, micro_request: Request
) -> None:
    generating = {"final": pipeline, "turbo": turbo}[level]
    session = session_like(generating, micro_request, Gate())
    (fault,) = racing_faults(level, "cpu")
    found = judge_repeat_fault(fault, session, generating.level, generating)
    assert found.caught, found.seen
    assert "generated twice" in found.seen
    control = replace(fault, inject=numeric_faults(level, "float32")[0].inject, caught_by=None)
    assert judge_repeat_fault(control, session, generating.level, generating).caught


@pytest.mark.parametrize(
    ("card", "races"),
    [("H100", True), ("A100", False), ("H100 through pointers", False), ("B200", False)],
)
def test_the_tile_that_raced_is_put_in_only_where_it_would_be_taken(
    card: str, races: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "card_of", lambda device: cards.KNOWN[card])
    source = SimpleNamespace(is_embedded=False)
    run: Any = SimpleNamespace(device=torch.device("cuda"), source=source)
    assert selftest._has_racing_tile(run) == races


def test_the_racing_tile_is_put_back_for_a_while(turbo: LevelPipeline) -> None:
    fault, engine, before = racing_tile_fault(), turbo.engine, dict(tuned())
    with fault.inject(turbo):
        changed = {key for key, tile in tuned().items() if tile != before.get(key)}
        assert changed <= {RACING_KEY}
        assert tuned()[RACING_KEY] == Tile(**RACING_TILE)
        assert turbo.engine is not engine
    assert (tuned(), turbo.engine) == (before, engine)
    assert fault.caught_by == "repeat"


def test_on_a_gpu_float64_is_not_asked_for() -> None:
    faults = [fault for fault in numerics("float16") if fault.caught_by not in (None, "repeat")]
    assert {fault.caught_by for fault in faults} == {"latent_drift", "effect"}
    assert racing_faults("turbo", "cuda") == []
    assert len(racing_faults("final", "cuda")) == 1


def test_random_weights_show_these_faults_to_the_proof_of_effect_alone() -> None:
    faults = numeric_faults("final", "float16", trained=False)
    assert {fault.caught_by for fault in faults} == {None, "effect"}
    assert {fault.and_by for fault in faults} == {()}
    assert not [fault.name for fault in faults if "queries" in fault.name]


BETWEEN = {fault.id: fault for fault in (*request_faults(), *round_faults())}


@pytest.mark.parametrize("name", BETWEEN)
def test_a_fault_between_images_is_caught_and_gone_afterwards(
    name: str, pipeline: LevelPipeline, unchanged: np.ndarray, micro_request: Request
) -> None:
    fault = BETWEEN[name]
    session = session_like(pipeline, micro_request, Gate(device="cpu"))
    judge = judge_request_fault if fault.group == "request" else judge_round_fault
    found = judge(fault, session, EAGER, pipeline)
    assert found.caught, found.seen
    assert np.array_equal(generate(pipeline, micro_request), unchanged)


def test_a_fault_of_the_image_is_judged_against_the_stored_ones(
    pipeline: LevelPipeline, unchanged: np.ndarray, micro_request: Request
) -> None:
    session = standing_in(pipeline, unchanged, micro_request)
    for name in ("none (control)", "noise of 0.03", "black"):
        assert judge_image_fault(IMAGE_FAULTS[name], session, EAGER, pipeline).caught, name
    missed = replace(IMAGE_FAULTS["none (control)"], caught_by="ssim_drift")
    assert not judge_image_fault(missed, session, EAGER, pipeline).caught


@pytest.mark.parametrize(
    "name", ["one step less", "cutoff two steps early", "cutoff two steps late", "wrong seed"]
)
def test_where_images_cannot_show_it_work_has_to(
    name: str, pipeline: LevelPipeline, unchanged: np.ndarray, micro_request: Request
) -> None:
    """As in float16, whose limit is below what such a fault does to an image."""
    work = {"final": asdict(work_of(pipeline, observe(pipeline, micro_request)))}
    loose = {"drift": -1.0, "latents": 2.0}
    session = standing_in(pipeline, unchanged, micro_request)
    session.gate = Gate(limits={"final": loose}, work_stored=work)
    found = judge_image_fault(IMAGE_FAULTS[name], session, EAGER, pipeline)
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


def test_a_harness_run_that_is_given_up_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would go on, and write into a folder that is removed."""
    monkeypatch.setattr(harness, "TIMEOUT_S", 0.1)
    code = "import time; time.sleep(600)"
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    with pytest.raises(subprocess.TimeoutExpired):
        harness.outputs_of(*both)
    assert [process.returncode for process in both] == [-signal.SIGKILL] * 2
