"""On a GPU: many sizes, threads, autocast and saving, with graphs that are captured and replayed.

Skipped without one; on a Hopper GPU it takes about a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from sdopt.bench.measure.observation import compiled_graphs
from sdopt.engine import cuda_graphs
from sdopt.engine.image import ImageEngine
from sdopt.levels import FINAL, LEVELS
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.shapes import forget
from sdopt.pipelines.workload import EMBEDDED_REQUESTS
from sdopt.weights.sources import resolve

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: a GPU")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROMPT = EMBEDDED_REQUESTS[0].prompt
SIZES_PX = [(64 * height, 64 * width) for height in (1, 2, 3) for width in (1, 2, 3, 4)]
LIMIT = 0.02
"""The largest difference of a pixel between compiled and eager float16, and of two layouts."""


@pytest.fixture(scope="module")
def traced() -> Iterator[None]:
    """Dynamo traces and CUDA graphs are captured as ever; Inductor's minutes are spared."""
    compiles = torch.compile
    forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch,
            "compile",
            lambda function, mode, **how: compiles(function, backend="eager", **how),
        )
        yield
    forget()


@pytest.fixture(scope="module")
def final(traced: None) -> LevelPipeline:
    return build(resolve("embedded"), replace(FINAL, steps=4), torch.device(DEVICE))


@pytest.fixture(scope="module")
def eager() -> LevelPipeline:
    level = replace(FINAL, steps=4, compiled=False)
    return build(resolve("embedded"), level, torch.device(DEVICE))


@pytest.fixture(scope="module")
def turbo() -> LevelPipeline:
    return build(resolve("embedded"), LEVELS["turbo"], torch.device(DEVICE))


def generate(pipeline: Any, seed: int = 1, **more: Any) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return pipeline(PROMPT, generator=generator, **{"output_type": "np", **more}).images


def test_more_sizes_than_graphs_are_kept_each_compiled_once(
    final: LevelPipeline, eager: LevelPipeline
) -> None:
    assert len(SIZES_PX) > cuda_graphs.MOST_GRAPHS
    first = {}
    for height, width in SIZES_PX:
        first[height, width] = generate(final, height=height, width=width)
        wanted = generate(eager, height=height, width=width)
        assert np.abs(first[height, width] - wanted).max() < LIMIT
    before = compiled_graphs()
    for height, width in reversed(SIZES_PX):
        again = generate(final, height=height, width=width)
        assert np.abs(again - first[height, width]).max() < LIMIT
    assert compiled_graphs() == before


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a:UserWarning")
def test_autocast_is_not_captured(final: LevelPipeline, eager: LevelPipeline) -> None:
    plain = generate(final)
    for _ in range(2):
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            found, wanted = generate(final), generate(eager)
        assert np.abs(found - wanted).max() < 4 * LIMIT
        assert np.array_equal(generate(final), plain)


def test_the_engine_generates_the_same_bits_under_autocast(turbo: LevelPipeline) -> None:
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        first = generate(turbo, num_inference_steps=9)  # a table and a graph of its own
    assert np.array_equal(generate(turbo, num_inference_steps=9), first)


def test_two_engines_of_the_same_modules_take_changes_over_in_turn(turbo: LevelPipeline) -> None:
    """The one that comes second frees the joined weights that the other's graphs read."""
    first, before = turbo.engine, generate(turbo)
    assert first is not None
    weight = turbo.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight
    try:
        turbo.engine = ImageEngine(pipeline=turbo, level=turbo.level)
        with torch.no_grad():
            weight.mul_(1.5)
        changed = generate(turbo)
        turbo.engine = first
        torch.cuda.empty_cache()
        assert np.array_equal(generate(turbo), changed)
        assert not np.array_equal(changed, before)
        with torch.no_grad():
            weight.div_(1.5)
    finally:
        turbo.engine = first


def test_threads_that_capture_and_replay_generate_what_they_generate_alone(
    final: LevelPipeline, turbo: LevelPipeline
) -> None:
    tasks = [
        (pipeline, steps, seed)
        for steps in (3, 4, 5, 6)
        for pipeline in (final, turbo)
        for seed in (1, 2)
    ]

    def task(given: tuple[LevelPipeline, int, int]) -> Any:
        pipeline, steps, seed = given
        size = {"height": 64 * steps, "width": 64}  # another graph for each number of steps
        return generate(pipeline, seed, num_inference_steps=steps, **size)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(task, tasks, timeout=300))
    for given, one in zip(tasks, found, strict=True):
        assert np.array_equal(one, task(given))


def test_settings_are_those_of_the_level_and_then_the_users(turbo: LevelPipeline) -> None:
    before, wanted = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    within: list[tuple[int, bool]] = []
    checker = turbo.run_safety_checker

    def seen(*args: Any) -> Any:
        within.append((torch.get_num_threads(), torch.backends.cudnn.allow_tf32))
        return checker(*args)

    turbo.run_safety_checker = seen
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda seed: generate(turbo, seed), range(4), timeout=300))
    finally:
        del turbo.run_safety_checker
    assert within == [(1 if DEVICE == "cuda" else before, True)] * 4
    assert (torch.get_num_threads(), torch.backends.cudnn.allow_tf32) == (before, wanted)


@pytest.mark.filterwarnings("ignore:You have disabled the safety checker")
def test_a_saved_level_takes_no_device_memory_and_loads_weight_for_weight(
    turbo: LevelPipeline, tmp_path: Path
) -> None:
    first = generate(turbo)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.max_memory_allocated()
    turbo.save_pretrained(tmp_path)
    if DEVICE == "cuda":
        assert torch.cuda.max_memory_allocated() - before < 2**20
    dtype = turbo.unet.dtype
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path, dtype=dtype, safety_checker=None)
    for name in ("text_encoder", "unet", "vae"):
        state = getattr(loaded, name).state_dict()
        for key, weight in getattr(turbo, name).state_dict().items():
            assert torch.equal(state[key], weight.cpu()), (name, key)
    assert np.array_equal(generate(turbo), first)
