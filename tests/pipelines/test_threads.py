"""Calls of several threads take turns, and each finds the settings of its own level."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sdopt.levels import BASELINE, COMPILED, DPM_20, DPM_20_CUTOFF, EXPRESS, TUNED, Level
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.settings import process_settings
from sdopt.weights.sources import Source

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
STEPS = 4
LIMIT_S = 60
LEVELS = [replace(level, steps=STEPS) for level in (BASELINE, TUNED, DPM_20_CUTOFF, EXPRESS)]
LEVELS = [replace(level, compiled=False) for level in LEVELS]


def generate(pipeline: LevelPipeline, seed: int, **more: Any) -> Any:
    generator = torch.Generator().manual_seed(seed)
    steps = STEPS + seed % 3  # what a call notes in its pipeline is then another one each time
    given = {"num_inference_steps": steps, "generator": generator, "output_type": "np", **more}
    return pipeline(f"a cat {seed}", **given).images[0]


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """What each returns, in a thread of its own; whoever raises, raises here."""
    with ThreadPoolExecutor(len(works)) as pool:
        begun = threading.Barrier(len(works))

        def run(work: Callable[[], Any]) -> Any:
            begun.wait()
            return work()

        futures = [pool.submit(run, work) for work in works]
        return [future.result(LIMIT_S) for future in futures]


@pytest.fixture(scope="module", params=LEVELS, ids=lambda level: str(level.name))
def pipeline(request: pytest.FixtureRequest, micro_source: Source) -> LevelPipeline:
    return build(micro_source, request.param)


def test_threads_on_one_pipeline_generate_what_they_generate_alone(pipeline: LevelPipeline) -> None:
    seeds = range(8)
    wanted = [generate(pipeline, seed) for seed in seeds]
    found = at_once(*(lambda seed=seed: generate(pipeline, seed) for seed in seeds))
    assert all(np.array_equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_threads_on_one_compiled_pipeline_generate_what_they_generate_alone(
    micro_source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiles = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, mode, **how: compiles(function, backend="eager", **how)
    )
    pipeline = build(micro_source, replace(COMPILED, steps=STEPS))
    first = at_once(*(lambda seed=seed: generate(pipeline, seed) for seed in range(3)))
    assert all(np.array_equal(generate(pipeline, seed), first[seed]) for seed in range(3))


def switches() -> tuple[bool, ...]:
    backends = torch.backends
    return backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.benchmark


def test_threads_on_pipelines_of_other_settings_find_their_own(micro_source: Source) -> None:
    before, seen = switches(), []
    levels = [replace(BASELINE, steps=2), replace(TUNED, steps=2)]
    pipelines = [build(micro_source, level) for level in levels]
    for pipeline in pipelines:
        pipeline.unet.register_forward_pre_hook(
            lambda *_, tf32=pipeline.level.tf32: seen.append((tf32, switches()))
        )
    at_once(*(lambda one=one: [generate(one, 0) for _ in range(4)] for one in pipelines * 2))
    assert all(found == (tf32,) * 3 for tf32, found in seen)
    assert {tf32 for tf32, _ in seen} == {False, True}
    assert switches() == before


def test_the_users_settings_are_left_after_threads_that_raise(micro_source: Source) -> None:
    before = switches()
    pipelines = [build(micro_source, replace(level, steps=2)) for level in (BASELINE, TUNED)]

    def fail(pipeline: LevelPipeline) -> None:
        with pytest.raises(ZeroDivisionError):
            generate(pipeline, 0, callback_on_step_end=lambda *_: 1 // 0)

    at_once(*(lambda one=one: [fail(one) for _ in range(3)] for one in pipelines * 2))
    assert switches() == before


@pytest.mark.parametrize("level", [BASELINE, TUNED], ids=lambda level: str(level.name))
def test_settings_of_threads_never_overlap(level: Level) -> None:
    """Beside each other they would restore what the other one had set."""
    before, entered, threads = switches(), threading.Event(), torch.get_num_threads()
    other = TUNED if level is BASELINE else BASELINE

    def outer() -> None:
        with process_settings(level, CUDA):
            entered.set()
            assert not left.wait(0.2)  # the other one does not get in, let alone out
            assert switches() == (level.tf32,) * 3

    def inner() -> None:
        entered.wait(LIMIT_S)
        with process_settings(other, CUDA):
            assert switches() == (other.tf32,) * 3
        left.set()

    left = threading.Event()
    at_once(outer, inner)
    assert (switches(), torch.get_num_threads()) == (before, threads)


def test_a_thread_that_begins_to_compute_meanwhile_keeps_the_users_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen, begun, done = [], threading.Event(), threading.Event()

    def bystander() -> None:
        seen.append(torch.get_num_threads())  # a thread's number is settled when it first asks
        begun.set()
        done.wait(LIMIT_S)
        seen.append(torch.get_num_threads())

    try:
        with process_settings(TUNED, CUDA):
            assert torch.get_num_threads() == 1
            thread = threading.Thread(target=bystander)
            thread.start()
            assert begun.wait(LIMIT_S)
        done.set()
        thread.join(LIMIT_S)
        assert (seen, torch.get_num_threads()) == ([2, 2], 2)
    finally:
        torch.set_num_threads(before)


def test_a_callback_may_generate_with_its_own_pipeline(micro_source: Source) -> None:
    pipeline = build(micro_source, replace(DPM_20_CUTOFF, compiled=False, steps=STEPS))
    wanted = [generate(pipeline, seed) for seed in (0, 1)]
    inside: list[Any] = []

    def again(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step in (1, 2):
            inside.append(generate(pipeline, 1))
        return {}

    assert np.array_equal(generate(pipeline, 0, callback_on_step_end=again), wanted[0])
    assert [np.array_equal(found, wanted[1]) for found in inside] == [True, True]


def test_callbacks_may_generate_with_each_others_pipeline(micro_source: Source) -> None:
    """With a lock for each pipeline these two threads would wait for each other."""
    levels = (replace(DPM_20, compiled=False), BASELINE, EXPRESS)
    first, second, engine = (build(micro_source, replace(one, steps=STEPS)) for one in levels)
    wanted = [generate(one, 0) for one in (first, second, engine)]

    def crossing(other: LevelPipeline) -> Callable[..., dict[str, Any]]:
        def call(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            generate(other, 1)
            generate(engine, 1)
            return {}

        return call

    found = at_once(
        lambda: generate(first, 0, callback_on_step_end=crossing(second)),
        lambda: generate(second, 0, callback_on_step_end=crossing(first)),
        lambda: [generate(engine, 0) for _ in range(4)][-1],
    )
    assert all(np.array_equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_after_an_error_the_next_call_generates(pipeline: LevelPipeline) -> None:
    wanted = generate(pipeline, 0)
    with pytest.raises(ValueError, match="height"):
        generate(pipeline, 0, height=65, width=65)
    found = at_once(lambda: generate(pipeline, 0))
    assert np.array_equal(found[0], wanted)
