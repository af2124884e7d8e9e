"""Times are of whole images, by stage, and say where compiled code came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch
from micro import Rung

from sdopt.bench.measure import first_call, latency, timing
from sdopt.levels import BASELINE, FUSED, TURBO, Level
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.workload import Request
from sdopt.weights.sources import Source

PLAIN = replace(BASELINE, steps=2)


@pytest.fixture(scope="module")
def plain(micro_source: Source) -> LevelPipeline:
    return build(micro_source, PLAIN)


class Stopwatch:
    """Stands in for pytest-benchmark's fixture: calls the target and claims fixed times."""

    def __init__(self, disabled: bool = False) -> None:
        self.disabled = disabled
        self.options: dict[str, Any] = {}
        self.stats = None if disabled else SimpleNamespace(stats=SimpleNamespace(data=[]))

    def pedantic(self, target: Callable[[], None], **options: Any) -> None:
        self.options = options
        options["setup"]()
        target()
        if self.stats:
            self.stats.stats.data.extend([0.3, 0.1, 0.2])


def test_latency_keeps_the_raw_rounds(plain: LevelPipeline, micro_request: Request) -> None:
    stopwatch = Stopwatch()
    record = latency(plain, micro_request, stopwatch)
    assert record.rounds_ms == (300.0, 100.0, 200.0)
    assert record.median_ms == 200.0
    assert stopwatch.options["rounds"] == timing.ROUNDS["cpu"]
    assert stopwatch.options["warmup_rounds"] == timing.WARMUP_ROUNDS


def test_latency_without_measuring_has_no_median(
    plain: LevelPipeline, micro_request: Request
) -> None:
    record = latency(plain, micro_request, Stopwatch(disabled=True))
    assert (record.rounds_ms, record.median_ms) == ((), None)


def test_every_stage_takes_time(plain: LevelPipeline, micro_request: Request) -> None:
    stages = timing.stage_times(plain, micro_request)
    assert list(stages) == ["text", "denoise", "decode"]
    assert min(stages.values()) > 0


def test_watching_stages_restores_the_methods(plain: LevelPipeline, micro_request: Request) -> None:
    own = [set(vars(plain)), set(vars(plain.vae))]
    timing.stage_times(plain, micro_request)
    assert [set(vars(plain)), set(vars(plain.vae))] == own


@pytest.mark.parametrize("level", [FUSED, TURBO], ids=lambda level: str(level.name))
def test_the_stages_of_the_engine_take_time(
    level: Level, micro_source: Source, micro_request: Request
) -> None:
    stages = timing.stage_times(build(micro_source, replace(level, steps=2)), micro_request)
    assert list(stages) == ["text", "denoise", "decode"]
    assert 0 < stages["text"] < stages["denoise"]
    assert stages["decode"] > 0


def test_an_engine_that_generated_nothing_has_no_stages(micro_source: Source) -> None:
    engine = build(micro_source, FUSED).engine
    assert engine is not None
    with pytest.raises(RuntimeError, match="no image was generated yet"):
        engine.stage_ms()


def test_around_ticks_on_both_sides_and_restores_after_an_error() -> None:
    class Owner:
        def method(self, value: int) -> int:
            ticks.append("inside")
            return 10 // value

    ticks: list[str] = []
    owner = Owner()
    with timing._around(owner, "method", ticks.append):
        assert owner.method(5) == 2
    assert ticks == ["method begins", "inside", "method ends"]
    with pytest.raises(ZeroDivisionError), timing._around(owner, "method", ticks.append):
        owner.method(0)
    assert vars(owner) == {}


def test_an_eager_first_call_says_so(micro_source: Source, micro_request: Request) -> None:
    first = first_call(build(micro_source, PLAIN), micro_request)
    assert first.compile_cache == "eager"
    assert first.seconds > 0


def a_compiled_step() -> Any:
    """A step callback that compiles, by a function that Dynamo has not seen before."""

    def scale(latents: torch.Tensor) -> torch.Tensor:
        return latents * 0.125 + 3

    unseen = FunctionType(scale.__code__.replace(co_name="unseen"), globals())
    compiled = torch.compile(unseen, dynamic=False)
    return lambda pipeline, step, timestep, tensors: {"latents": compiled(tensors["latents"])}


@pytest.mark.slow
def test_a_first_call_tells_a_cold_cache_from_a_warm_one(
    plain: LevelPipeline,
    micro_request: Request,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    found = []
    for _ in range(2):
        monkeypatch.setattr(plain, "step_callback", a_compiled_step())
        found.append(first_call(plain, micro_request).compile_cache)
    monkeypatch.setattr(plain, "level", replace(PLAIN, compiled=True))
    found.append(first_call(plain, micro_request).compile_cache)
    assert found == ["cold", "warm", "shared"]


@pytest.mark.slow
def test_the_ladder_shares_its_compiled_code(ladder: dict[str, Rung]) -> None:
    assert ladder["dpm-20"].first.compile_cache == "shared"
    assert ladder["compiled"].first.compile_cache in ("cold", "warm")
