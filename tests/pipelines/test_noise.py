"""A seed means the same noise in every dtype where it should, elsewhere what diffusers draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor

from sdopt import portable_noise
from sdopt.bench.measure import broken_promises, observe, promise_of
from sdopt.levels import BASELINE, LEVELS
from sdopt.pipelines import noise
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.workload import EMBEDDED_REQUESTS, Request, generate, generate_batch
from sdopt.weights.sources import Source, resolve

CPU = torch.device("cpu")
NARROW = (torch.float16, torch.bfloat16)
SIDE = 128
SHAPE = (1, 4, 16, 16)


@pytest.fixture(scope="module")
def pipeline() -> LevelPipeline:
    return build(resolve("embedded"), LEVELS["dpm-20"], CPU)


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def beginning(pipeline: StableDiffusionPipeline, dtype: torch.dtype, images: int = 1) -> Any:
    generators = [seeded(seed) for seed in range(images)]
    return pipeline.prepare_latents(images, 4, SIDE, SIDE, dtype, CPU, generators)


def stepped(pipeline: StableDiffusionPipeline, dtype: torch.dtype) -> torch.Tensor:
    """A sample of zeros after one step of an ancestral sampler: its noise alone."""
    del pipeline
    scheduler = EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(4)
    nothing = torch.zeros(SHAPE, dtype=dtype)
    made = scheduler.step(nothing, scheduler.timesteps[0], nothing, generator=seeded())
    found: torch.Tensor = made.prev_sample
    return found


DRAWN = pytest.mark.parametrize("drawn", [beginning, stepped])
Drawn = Callable[[StableDiffusionPipeline, torch.dtype], torch.Tensor]


@pytest.fixture
def old_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch 2.11: a narrow type draws other values than float32, from the same seed."""
    draws = torch.randn

    def randn(*args: Any, dtype: torch.dtype | None = None, **how: Any) -> torch.Tensor:
        if dtype in NARROW:
            return draws(*args, dtype=torch.float64, **how).to(dtype)
        return draws(*args, dtype=dtype, **how)

    monkeypatch.setattr(torch, "randn", randn)


@DRAWN
@pytest.mark.usefixtures("old_torch")
@pytest.mark.parametrize("dtype", NARROW)
def test_a_seed_is_the_same_noise_in_a_narrow_type(
    pipeline: LevelPipeline, drawn: Drawn, dtype: torch.dtype
) -> None:
    def apart() -> float:
        wide = drawn(pipeline, torch.float32)
        return float((drawn(pipeline, dtype).float() - wide).norm() / wide.norm())

    assert apart() > 1  # what this is about
    with portable_noise():
        assert apart() < torch.finfo(dtype).eps


@DRAWN
@pytest.mark.usefixtures("old_torch")
@pytest.mark.parametrize("dtype", NARROW)
def test_elsewhere_it_is_what_diffusers_draws(
    pipeline: LevelPipeline, drawn: Drawn, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = drawn(pipeline, dtype)
    for module in noise.DRAWING:
        monkeypatch.setattr(module, "randn_tensor", randn_tensor)
    assert torch.equal(ours, drawn(pipeline, dtype))


def test_float32_and_wider_types_stay_as_they_are(pipeline: LevelPipeline) -> None:
    for dtype in (torch.float32, torch.float64):
        outside = beginning(pipeline, dtype)
        with portable_noise():
            assert torch.equal(beginning(pipeline, dtype), outside)


@pytest.mark.usefixtures("old_torch")
def test_each_image_of_a_batch_has_its_own_generator(pipeline: LevelPipeline) -> None:
    with portable_noise():
        both = beginning(pipeline, torch.float16, 2)
        assert torch.equal(both[:1], beginning(pipeline, torch.float16))


def test_given_latents_stay_as_they_are(pipeline: LevelPipeline) -> None:
    given = torch.ones(SHAPE, dtype=torch.float16)
    with portable_noise():
        found = pipeline.prepare_latents(1, 4, SIDE, SIDE, torch.float16, CPU, None, given)
    assert torch.equal(found, given)


@pytest.mark.usefixtures("old_torch")
@pytest.mark.parametrize("level", ["euler-20", "dpm-20", "hoisted"])
def test_the_suite_draws_and_promises_the_noise_of_float32(
    level: str, micro_source: Source, micro_request: Request
) -> None:
    row = replace(LEVELS[level], steps=3, compiled=False)
    pipeline = build(micro_source, row, CPU, torch.bfloat16)
    promise = promise_of(micro_source, row, micro_request, "bfloat16")
    wide = promise_of(micro_source, row, micro_request, "float32")
    assert torch.equal(promise.noise, wide.noise.to(torch.bfloat16))
    assert broken_promises(promise, observe(pipeline, micro_request)) == ()


@pytest.mark.usefixtures("old_torch")
def test_each_image_of_the_suites_batches_has_its_own_noise(
    micro_source: Source, micro_request: Request
) -> None:
    pipeline = build(micro_source, BASELINE, CPU, torch.bfloat16)
    seen: list[torch.Tensor] = []
    prepare = pipeline.prepare_latents

    def noted(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(prepare(*args, **kwargs))
        return seen[-1]

    object.__setattr__(pipeline, "prepare_latents", noted)
    other = replace(micro_request, seed=micro_request.seed + 1)
    generate_batch(pipeline, [micro_request, other])
    for request in (micro_request, other):
        generate(pipeline, request)
    assert torch.equal(seen[0], torch.cat(seen[1:]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: a float16 pipeline")
@pytest.mark.parametrize("level", ["dpm-20", "euler-20", "hoisted"])
def test_a_seed_means_the_same_image_on_a_gpu_and_the_cpu(level: str) -> None:
    """After three steps an image still shows its noise: another seed's is 0.02 away, not 0.002."""
    source, request = resolve("embedded"), EMBEDDED_REQUESTS[1]
    row = replace(LEVELS[level], compiled=False)
    first, second = (
        generate(build(source, row, device), request, num_inference_steps=3)
        for device in (torch.device("cuda"), CPU)
    )
    assert np.abs(first - second).mean() < 0.006
