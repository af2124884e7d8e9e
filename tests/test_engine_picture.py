"""The picture engine draws what the eager levels draw, and refuses what it cannot honour."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler

from sdopt.errors import SdoptError
from sdopt.levels import LEVELS
from sdopt.measure.quality import likeness, to_uint8
from sdopt.pipeline import LevelPipeline, build
from sdopt.sources import resolve
from sdopt.workload import EMBEDDED_REQUESTS, generate

PROMPT = EMBEDDED_REQUESTS[0].prompt
OTHER = EMBEDDED_REQUESTS[1].prompt
NEGATIVE = EMBEDDED_REQUESTS[1].negative_prompt

Pipelines = Callable[[str], LevelPipeline]


@pytest.fixture(scope="module")
def pipelines() -> Pipelines:
    """Levels on the embedded model, eager and on the CPU, each built once."""
    torch.set_num_threads(1)
    built: dict[str, LevelPipeline] = {}

    def get(name: str) -> LevelPipeline:
        if name not in built:
            level = replace(LEVELS[name], compiled=False)
            built[name] = build(resolve("embedded"), level, torch.device("cpu"))
        return built[name]

    return get


def draw(pipeline: LevelPipeline, prompt: Any = PROMPT, seed: int = 1, **more: Any) -> Any:
    more.setdefault("output_type", "np")
    return pipeline(prompt, generator=torch.Generator().manual_seed(seed), **more).images


def ssim(one: Any, other: Any) -> float:
    return likeness(to_uint8(one), to_uint8(other)).ssim


LIKE = [
    ("fused", "dpm-20", 0.999),
    ("hoisted", "dpm-20", 0.999),
    ("hoisted-cutoff", "dpm-20-cutoff", 0.999),
    ("express", "final", 0.999),
    ("turbo", "final", 0.99),
]


@pytest.mark.parametrize(("name", "eager", "least"), LIKE)
def test_a_level_draws_the_eager_levels_pictures(
    name: str, eager: str, least: float, pipelines: Pipelines
) -> None:
    for request in EMBEDDED_REQUESTS[:2]:
        found, wanted = (generate(pipelines(level), request) for level in (name, eager))
        assert ssim(found, wanted) >= least


@pytest.mark.parametrize(
    "more",
    [
        {"num_inference_steps": 7},
        {"num_inference_steps": 1},
        {"height": 64, "width": 192},
        {"guidance_scale": 1.0},
        {"guidance_scale": 3.0, "negative_prompt": NEGATIVE},
    ],
    ids=str,
)
def test_arguments_do_what_they_do_to_the_eager_level(
    more: dict[str, Any], pipelines: Pipelines
) -> None:
    found, wanted = (draw(pipelines(level), **more)[0] for level in ("express", "final"))
    assert ssim(found, wanted) >= 0.999


def test_two_pictures_at_once_are_those_drawn_alone(pipelines: Pipelines) -> None:
    pipeline = pipelines("express")
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    negatives = ["", NEGATIVE]
    arguments: Any = {"negative_prompt": negatives, "generator": seeds, "output_type": "np"}
    both = pipeline([PROMPT, OTHER], **arguments).images
    for image, prompt, negative, seed in zip(both, (PROMPT, OTHER), negatives, (1, 2), strict=True):
        alone = draw(pipeline, prompt, seed, negative_prompt=negative)[0]
        assert np.abs(image - alone).max() < 1e-3


def test_pipelines_that_take_turns_do_not_disturb_each_other(pipelines: Pipelines) -> None:
    names = ("express", "hoisted")
    before = [draw(pipelines(name), num_inference_steps=4) for name in names]
    for _ in range(2):
        for name, wanted in zip(names, before, strict=True):
            assert np.array_equal(draw(pipelines(name), num_inference_steps=4), wanted)


def test_a_second_thread_draws_the_right_picture(pipelines: Pipelines) -> None:
    pipeline = pipelines("express")
    wanted = [draw(pipeline, seed=seed, num_inference_steps=4) for seed in (1, 2)]
    found: dict[int, Any] = {}

    def work(seed: int) -> None:
        found[seed] = draw(pipeline, seed=seed, num_inference_steps=4)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[seed], wanted[seed - 1]) for seed in (1, 2))


def test_output_types(pipelines: Pipelines) -> None:
    pipeline = pipelines("express")
    array = draw(pipeline, num_inference_steps=2)
    assert array.shape == (1, 128, 128, 3)
    tensor = draw(pipeline, num_inference_steps=2, output_type="pt")
    assert np.allclose(tensor.permute(0, 2, 3, 1).numpy(), array, atol=1e-6)
    image = draw(pipeline, num_inference_steps=2, output_type="pil")[0]
    assert np.array_equal(np.asarray(image), to_uint8(array[0]))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"callback_on_step_end": print}, "callback_on_step_end"),
        ({"prompt_embeds": torch.zeros(1, 77, 8)}, "prompt_embeds"),
        ({"eta": 0.5}, "eta"),
        ({"output_type": "latent"}, "output_type is 'latent'"),
        ({"height": 100}, "height is 100"),
        ({"width": 32}, "width is 32"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"negative_prompt": ["", ""]}, "2 negative prompts for 1 prompts"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, "latents are"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_what_cannot_be_honoured_is_refused_by_name(
    more: dict[str, Any], says: str, pipelines: Pipelines
) -> None:
    with pytest.raises(SdoptError) as caught:
        draw(pipelines("express"), **more)
    assert says in str(caught.value)


@pytest.mark.parametrize("part", ["conv_out", "merged"])
def test_a_weight_changed_in_place_is_seen(part: str, pipelines: Pipelines) -> None:
    pipeline = pipelines("express")
    unet = pipeline.unet
    weight = unet.conv_out.weight if part == "conv_out" else unet.mid_block.attentions[0].proj_out
    weight = weight if part == "conv_out" else weight.weight
    before = draw(pipeline, num_inference_steps=2)
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(3)
    changed = draw(pipeline, num_inference_steps=2)
    with torch.no_grad():
        weight.copy_(kept)
    assert not np.allclose(changed, before, atol=1e-3)
    assert np.allclose(draw(pipeline, num_inference_steps=2), before, atol=1e-5)


def test_a_replaced_scheduler_is_refused(pipelines: Pipelines) -> None:
    pipeline = pipelines("express")
    before = pipeline.scheduler
    pipeline.register_modules(scheduler=EulerDiscreteScheduler.from_config(before.config))
    try:
        with pytest.raises(SdoptError, match="a part of the pipeline was replaced"):
            draw(pipeline)
    finally:
        pipeline.register_modules(scheduler=before)
