"""Each slowdown takes the time that it says, where it says, and can be undone."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from own_code import own_code

from sdopt.bench.ab.slowdowns import _spin, inject
from sdopt.errors import UnknownNameError
from sdopt.levels import BASELINE, FINAL, HOISTED
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.workload import Request, generate
from sdopt.weights.sources import Source

STEPS = 3


@pytest.fixture(scope="module", params=[BASELINE, HOISTED], ids=lambda level: level.name)
def pipeline(micro_source: Source, request: pytest.FixtureRequest) -> LevelPipeline:
    """Of diffusers' own modules, and of the engine's, which refuses what is put into them."""
    return build(micro_source, replace(request.param, steps=STEPS))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The milliseconds of every wait, which are not waited."""
    waited: list[float] = []
    monkeypatch.setattr("sdopt.bench.ab.slowdowns._spin", waited.append)
    return waited


@pytest.mark.parametrize(
    ("fault", "wanted"),
    [("loop:0.03", [10.0] * STEPS), ("decoder:0.02", [20.0]), ("host:0.1", [100.0])],
)
def test_a_slowdown_is_a_share_of_the_image_and_can_be_undone(
    fault: str,
    wanted: list[float],
    waits: list[float],
    pipeline: LevelPipeline,
    micro_request: Request,
) -> None:
    undo = inject(pipeline, fault, image_ms=1000.0)
    generate(pipeline, micro_request)
    assert waits == pytest.approx(wanted)
    undo()
    generate(pipeline, micro_request)
    assert len(waits) == len(wanted)
    assert pipeline.each_image is None
    forward = vars(pipeline.unet).get("forward")
    assert forward is None or forward.after is None


def test_a_slowdown_of_a_compiled_level_leaves_it_compiled(
    waits: list[float],
    micro_source: Source,
    micro_request: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A forward pass wrapped from outside would be computed uncompiled, with a warning."""
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda code, **_: compiled.append(code) or code)
    pipeline = build(micro_source, replace(FINAL, steps=STEPS))
    with own_code():
        undo = inject(pipeline, "loop:0.03", image_ms=1000.0)
        generate(pipeline, micro_request)
        undo()
    assert waits == pytest.approx([10.0] * STEPS)
    assert compiled


def test_a_wait_lasts_that_long() -> None:
    start = time.perf_counter()
    _spin(20.0)
    assert time.perf_counter() - start >= 0.02


@pytest.mark.parametrize("fault", ["sleep:0.1", "", "loops:1"])
def test_an_unknown_fault_is_named_with_the_choices(fault: str, pipeline: LevelPipeline) -> None:
    with pytest.raises(UnknownNameError, match="loop"):
        inject(pipeline, fault, image_ms=1.0)
