"""The solver and the noise that ran are compared with those that source and level promise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdopt.bench.faults.numerics import _rescheduled, _rounded_noise
from sdopt.bench.measure import broken_promises, observe, promise_of
from sdopt.bench.measure.promise import promised_scheduler
from sdopt.errors import BrokenFileError
from sdopt.levels import BASELINE, FINAL, HOISTED, TURBO, Level
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.workload import Request
from sdopt.weights.sources import Source, resolve

PLAIN = replace(BASELINE, steps=3)
EAGER = replace(FINAL, compiled=False, steps=5, cfg_cutoff=0.4)
ENGINE = replace(HOISTED, steps=3)
LEVELS_OF_EACH_KIND = [PLAIN, EAGER, ENGINE, replace(TURBO, steps=5, cfg_cutoff=0.4)]


def broken(level: Level, pipeline: LevelPipeline, request: Request) -> tuple[str, ...]:
    promise = promise_of(pipeline.source, level, request, "float32")
    return broken_promises(promise, observe(pipeline, request))


@pytest.mark.parametrize("level", LEVELS_OF_EACH_KIND, ids=lambda level: str(level.name))
def test_a_level_keeps_its_promises(
    level: Level, micro_source: Source, micro_request: Request
) -> None:
    assert broken(level, build(micro_source, level), micro_request) == ()


def test_random_weights_have_the_stored_schedule_too() -> None:
    embedded, random = resolve("embedded"), resolve("sd15-random")
    for level in (BASELINE, FINAL):
        schedulers = [promised_scheduler(source, level) for source in (embedded, random)]
        for scheduler in schedulers:
            scheduler.set_timesteps(20)
        assert torch.equal(schedulers[0].sigmas, schedulers[1].sigmas)


def changed(**options: Any) -> Any:
    return _rescheduled(**options)


@contextmanager
def another_seed(pipeline: LevelPipeline) -> Iterator[Any]:
    prepare = pipeline.prepare_latents

    def noisy(*args: Any, **kwargs: Any) -> Any:
        return torch.roll(prepare(*args, **kwargs), 1)

    object.__setattr__(pipeline, "prepare_latents", noisy)
    yield pipeline


@contextmanager
def half_a_bit_off(pipeline: LevelPipeline) -> Iterator[Any]:
    """The last bit of one value."""
    prepare = pipeline.prepare_latents

    def noisy(*args: Any, **kwargs: Any) -> Any:
        noise = prepare(*args, **kwargs).clone()
        noise[0, 0, 0, 0] = torch.nextafter(noise[0, 0, 0, 0], torch.tensor(9.0))
        return noise

    object.__setattr__(pipeline, "prepare_latents", noisy)
    yield pipeline


@contextmanager
def patched_step(pipeline: LevelPipeline) -> Iterator[Any]:
    """The scheduler's options are right and its arithmetic is not."""
    scheduler, own = pipeline.scheduler, pipeline.scheduler.step

    def step(prediction: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        return own(prediction * (1 + 1e-6), timestep, sample, *args, **kwargs)

    scheduler.step = step
    yield pipeline


@contextmanager
def moved_between(pipeline: LevelPipeline) -> Iterator[Any]:
    def move(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        tensors["latents"] = tensors["latents"] * 1.5
        return tensors

    pipeline.step_callback = move
    yield pipeline


@contextmanager
def a_stale_table(pipeline: LevelPipeline) -> Iterator[Any]:
    """The engine's, of another solver than the scheduler's options say."""
    assert pipeline.engine is not None
    pipeline.engine.schedule.forget()
    right = pipeline.scheduler
    wrong = type(right).from_config(right.config, use_karras_sigmas=True)
    object.__setattr__(pipeline, "scheduler", wrong)
    pipeline.engine.schedule.solver(wrong, pipeline.level.steps)
    object.__setattr__(pipeline, "scheduler", right)
    yield pipeline


@contextmanager
def other_guidance(pipeline: LevelPipeline) -> Iterator[Any]:
    pipeline.source = replace(pipeline.source, guidance_scale=7.0)
    yield pipeline


FAULTS = [
    (EAGER, changed(timestep_spacing="trailing"), "solver: timestep_spacing is 'trailing'"),
    (EAGER, changed(timestep_spacing="trailing"), "solver: the timesteps differ in"),
    (ENGINE, changed(timestep_spacing="trailing"), "solver: timestep_spacing is 'trailing'"),
    (ENGINE, changed(timestep_spacing="trailing"), "solver: the timesteps differ in"),
    (EAGER, changed(solver_type="heun"), "solver: solver_type is 'heun', promised is 'midpoint'"),
    (EAGER, changed(solver_type="heun"), "solver: the latents after step 1 differ in"),
    (ENGINE, changed(solver_type="heun"), "solver: solver_type is 'heun'"),
    (ENGINE, changed(solver_type="heun"), "solver: the factors of estimate before differ in"),
    (EAGER, changed(use_karras_sigmas=True), "solver: use_karras_sigmas is True"),
    (EAGER, changed(lower_order_final=False), "solver: lower_order_final is False"),
    (EAGER, changed(prediction_type="sample"), "solver: prediction_type is 'sample'"),
    (EAGER, changed(final_sigmas_type="sigma_min"), "solver: final_sigmas_type is 'sigma_min'"),
    (EAGER, changed(final_sigmas_type="sigma_min"), "solver: the sigmas differ in 1 of 6 values"),
    (PLAIN, changed(beta_end=0.0121), "solver: beta_end is 0.0121, promised is 0.012"),
    (PLAIN, changed(beta_end=0.0121), "solver: the sigmas differ in"),
    (PLAIN, patched_step, "solver: the latents after step 0 differ in"),
    (EAGER, patched_step, "solver: the latents after step 0 differ in"),
    (PLAIN, moved_between, "solver: the latents were changed between the steps 0 and 1"),
    (ENGINE, a_stale_table, "solver: the timesteps differ in"),
    (ENGINE, a_stale_table, "solver: the factors of estimate differ in"),
    *(
        (level, inject, "noise: the values of the UNet's first sample differ in")
        for level in (PLAIN, EAGER, ENGINE)
        for inject in (another_seed, half_a_bit_off, _rounded_noise("float16"))
    ),
]


@pytest.mark.parametrize(
    ("level", "inject", "says"), FAULTS, ids=[f"{n}-{case[2]}" for n, case in enumerate(FAULTS)]
)
def test_a_broken_promise_is_named(
    level: Level,
    inject: Callable[[LevelPipeline], Any],
    says: str,
    micro_source: Source,
    micro_request: Request,
) -> None:
    pipeline = build(micro_source, level)
    with inject(pipeline):
        found = broken(level, pipeline, micro_request)
    assert [sentence for sentence in found if sentence.startswith(says)] != [], found


def test_another_guidance_is_named_by_the_engines_table(
    micro_source: Source, micro_request: Request
) -> None:
    pipeline = build(micro_source, ENGINE)
    with other_guidance(pipeline):
        seen = observe(pipeline, micro_request)
    promise = promise_of(micro_source, ENGINE, micro_request, "float32")
    assert broken_promises(promise, seen) == (
        "solver: the factors of guidance differ in 3 of 3 values: number 0 is 7, promised is 7.5",
    )


def test_noise_of_another_dtype_is_named(micro_source: Source, micro_request: Request) -> None:
    pipeline = build(micro_source, PLAIN)
    promise = promise_of(micro_source, PLAIN, micro_request, "float16")
    (found,) = broken_promises(promise, observe(pipeline, micro_request))
    assert found == (
        "noise: the values of the UNet's first sample are float32, promised is float16"
    )


def test_fewer_steps_are_named(micro_source: Source, micro_request: Request) -> None:
    pipeline = build(micro_source, replace(EAGER, steps=4))
    found = broken(EAGER, pipeline, micro_request)
    assert "solver: the timesteps have the shape (4,), promised is (5,)" in found


def test_the_engine_where_a_loop_was_promised_is_named(
    micro_source: Source, micro_request: Request
) -> None:
    promised = replace(ENGINE, whole_graph=False, fused=False, hoisted=False)
    found = broken(promised, build(micro_source, ENGINE), micro_request)
    assert found == ("solver: the engine generated, and the level promises diffusers' own loop",)


def test_nothing_seen_is_named(micro_source: Source, micro_request: Request) -> None:
    seen = replace(observe(build(micro_source, PLAIN), micro_request), solver=None)
    promise = promise_of(micro_source, PLAIN, micro_request, "float32")
    assert broken_promises(promise, seen) == ("solver: nothing of it was seen",)


def test_the_watched_image_is_the_very_image(micro_source: Source, micro_request: Request) -> None:
    """Its solver draws the request's own noise at each step, not the process's."""
    pipeline = build(micro_source, PLAIN)
    ends = []
    for _ in range(2):
        torch.manual_seed(len(ends))
        seen = observe(pipeline, micro_request)
        assert seen.solver is not None
        ends.append(seen.solver.steps[-1].after)
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("content", "says"), [("{", "cannot be read"), ("[1]", "holds no JSON object")]
)
def test_a_broken_stored_schedule_is_named(
    content: str, says: str, micro: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(micro, folder)
    source = resolve(str(folder))
    (folder / "scheduler" / "scheduler_config.json").write_text(content)
    with pytest.raises(BrokenFileError, match=says):
        promised_scheduler(source, PLAIN)


def test_what_the_source_stores_is_what_is_promised(micro: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(micro, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "timestep_spacing": "trailing"}))
    scheduler = promised_scheduler(resolve(str(folder)), EAGER)
    assert scheduler.config.timestep_spacing == "trailing"
