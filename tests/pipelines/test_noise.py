"""A seed means the same noise in every dtype, and outside of the suite what diffusers draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from sdopt import portable_noise
from sdopt.levels import LEVELS
from sdopt.pipelines import noise
from sdopt.pipelines.noise import rounded_noise
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.workload import EMBEDDED_REQUESTS, generate
from sdopt.weights.sources import resolve

CPU = torch.device("cpu")
NARROW = (torch.float16, torch.bfloat16)
SIDE = 128


@pytest.fixture(scope="module")
def pipeline() -> LevelPipeline:
    return build(resolve("embedded"), LEVELS["dpm-20"], CPU)


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(pipeline: LevelPipeline, dtype: torch.dtype, images: int = 1, **given: Any) -> Any:
    generator = given.pop("generator", None) or seeded()
    return pipeline.prepare_latents(images, 4, SIDE, SIDE, dtype, CPU, generator, **given)


@pytest.fixture
def old_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch 2.11: a narrow type draws other values than float32, from the same seed."""
    draws = torch.randn

    def randn(*args: Any, dtype: torch.dtype | None = None, **how: Any) -> torch.Tensor:
        if dtype in NARROW:
            return draws(*args, dtype=torch.float64, **how).to(dtype)
        return draws(*args, dtype=dtype, **how)

    monkeypatch.setattr(torch, "randn", randn)


@pytest.mark.usefixtures("old_torch")
@pytest.mark.parametrize("dtype", NARROW)
def test_a_seed_is_the_same_noise_in_a_narrow_type(
    pipeline: LevelPipeline, dtype: torch.dtype
) -> None:
    wide = drawn(pipeline, torch.float32).to(dtype)
    assert not torch.equal(drawn(pipeline, dtype), wide)  # what this is about
    with portable_noise():
        assert torch.equal(drawn(pipeline, dtype), wide)
        assert torch.equal(drawn(pipeline, torch.float32).to(dtype), wide)


@pytest.mark.usefixtures("old_torch")
@pytest.mark.parametrize("dtype", NARROW)
def test_elsewhere_it_is_what_diffusers_draws(pipeline: LevelPipeline, dtype: torch.dtype) -> None:
    theirs = StableDiffusionPipeline.prepare_latents(
        pipeline, 1, 4, SIDE, SIDE, dtype, CPU, seeded()
    )
    assert torch.equal(drawn(pipeline, dtype), theirs)


@pytest.mark.usefixtures("old_torch")
def test_each_image_of_a_batch_has_its_own_generator(pipeline: LevelPipeline) -> None:
    with portable_noise():
        both = drawn(pipeline, torch.float16, 2, generator=[seeded(1), seeded(2)])
        for latents, seed in zip(both, (1, 2), strict=True):
            assert torch.equal(
                latents[None], drawn(pipeline, torch.float16, generator=seeded(seed))
            )


def test_given_latents_stay_as_they_are(pipeline: LevelPipeline) -> None:
    given = rounded_noise((1, 4, 16, 16), seeded(), torch.float16)
    with portable_noise():
        assert torch.equal(drawn(pipeline, torch.float16, latents=given), given)


def test_noise_is_scaled_after_it_is_rounded() -> None:
    euler = build(resolve("embedded"), LEVELS["baseline"], CPU)
    euler.scheduler.set_timesteps(20)
    sigma = euler.scheduler.init_noise_sigma
    assert sigma > 1
    with portable_noise():
        found = drawn(euler, torch.float16)
    assert torch.equal(found, rounded_noise((1, 4, 16, 16), seeded(), torch.float16) * sigma)


def test_the_suite_draws_so(pipeline: LevelPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[bool] = []
    real = noise.is_portable

    def seen(dtype: torch.dtype) -> bool:
        inside.append(real(torch.float16))
        return real(dtype)

    monkeypatch.setattr("sdopt.pipelines.pipeline.is_portable", seen)
    request = EMBEDDED_REQUESTS[0]
    generate(pipeline, request, num_inference_steps=1)
    pipeline(request.prompt, num_inference_steps=1, output_type="np")
    assert inside == [True, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: a float16 pipeline")
def test_a_seed_means_the_same_image_on_a_gpu_and_the_cpu() -> None:
    """After three steps an image still shows its noise: another seed's is 0.02 away, not 0.002."""
    source, request = resolve("embedded"), EMBEDDED_REQUESTS[1]
    first, second = (
        generate(build(source, LEVELS["dpm-20"], device), request, num_inference_steps=3)
        for device in (torch.device("cuda"), CPU)
    )
    assert np.abs(first - second).mean() < 0.006
