"""Pipelines made of a level's parts compute what they compute of stock parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from micro import SIZE_PX

from sdopt.errors import SdoptError
from sdopt.levels import DPM_20, EXPRESS, FINAL, FUSED, HOISTED, TUNED, TURBO, Level
from sdopt.pipelines.loading import load_tiny_vae
from sdopt.pipelines.pipeline import (
    LevelPipeline,
    apply_scheduler,
    build,
    load_weights,
)
from sdopt.weights.sources import Source

CPU = torch.device("cpu")
STEPS = 4
LEVELS = [TUNED, DPM_20, FINAL, FUSED, HOISTED, EXPRESS, TURBO]
LIMIT = 1e-4
UNCHECKED = {"safety_checker": None, "requires_safety_checker": False}


@pytest.fixture(scope="module", params=LEVELS, ids=lambda level: str(level.name))
def level(request: pytest.FixtureRequest) -> Level:
    found: Level = replace(request.param, compiled=False, steps=STEPS)
    return found


@pytest.fixture(scope="module")
def pipeline(level: Level, micro_source: Source) -> LevelPipeline:
    """A level that has generated; compiled ones are left eager."""
    made = build(micro_source, level)
    made("a cat", output_type="np")
    return made


@pytest.fixture
def stock(level: Level, micro_source: Source) -> StableDiffusionPipeline:
    """The same weights, scheduler and decoder, which nobody has touched."""
    plain = load_weights(micro_source, CPU, torch.float32)
    apply_scheduler(plain, level)
    if level.decoder == "tiny-vae":
        plain.register_modules(vae=load_tiny_vae(micro_source, CPU, torch.float32))
    plain.set_progress_bar_config(disable=True)
    return StableDiffusionPipeline(
        **{**plain.components, "safety_checker": None}, requires_safety_checker=False
    )


def image() -> Any:
    return np.random.default_rng(0).random((1, SIZE_PX, SIZE_PX, 3), dtype=np.float32)


MASK = np.zeros((1, SIZE_PX, SIZE_PX), dtype=np.float32)
MASK[:, : SIZE_PX // 2] = 1.0


def generate(pipeline: Any, **more: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(1)
    given = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "generator": seed, **more}
    return pipeline("a cat", negative_prompt="a dog", output_type="np", **given).images


def vae_of(pipeline: Any) -> dict[str, Any]:
    """A Tiny VAE is not what stock pipelines declare: `from_pipe` wants it given once more."""
    kind = type(pipeline.vae).__name__
    return {"vae": pipeline.vae} if kind == "AutoencoderTiny" else {}


def test_from_pipe_gives_plain_text_to_image(pipeline: LevelPipeline, stock: Any) -> None:
    derived = StableDiffusionPipeline.from_pipe(pipeline, **vae_of(pipeline))
    assert type(derived) is StableDiffusionPipeline
    np.testing.assert_allclose(generate(derived), generate(stock), atol=LIMIT)


def test_image_to_image(pipeline: LevelPipeline, stock: Any) -> None:
    wanted = generate(
        StableDiffusionImg2ImgPipeline(**stock.components, requires_safety_checker=False),
        image=image(),
        strength=0.8,
    )
    parts = pipeline.components
    for derived in (
        StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False),
        StableDiffusionImg2ImgPipeline.from_pipe(pipeline, **vae_of(pipeline)),
        AutoPipelineForImage2Image.from_pipe(pipeline),
    ):
        assert type(derived) is StableDiffusionImg2ImgPipeline
        np.testing.assert_allclose(
            generate(derived, image=image(), strength=0.8), wanted, atol=LIMIT
        )


def test_inpainting(pipeline: LevelPipeline, stock: Any) -> None:
    if pipeline.level.decoder == "tiny-vae":
        pytest.skip("stock diffusers inpaints with a full VAE alone")
    derived = AutoPipelineForInpainting.from_pipe(pipeline)
    given = {"image": image(), "mask_image": MASK, "strength": 0.8}
    plain = StableDiffusionInpaintPipeline(**stock.components, requires_safety_checker=False)
    assert type(derived) is StableDiffusionInpaintPipeline
    np.testing.assert_allclose(generate(derived, **given), generate(plain, **given), atol=LIMIT)


def test_text_to_image_by_its_task(pipeline: LevelPipeline, stock: Any) -> None:
    derived = AutoPipelineForText2Image.from_pipe(pipeline)
    assert type(derived) is StableDiffusionPipeline
    np.testing.assert_allclose(generate(derived), generate(stock), atol=LIMIT)


def test_a_derived_pipeline_generates_other_sizes_and_batches(
    pipeline: LevelPipeline, stock: Any
) -> None:
    derived = StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False)
    given = {"height": 64, "width": 128, "num_images_per_prompt": 2}
    np.testing.assert_allclose(generate(derived, **given), generate(stock, **given), atol=LIMIT)


def test_a_derived_pipeline_generates_any_multiple_of_8_px_or_says_no(
    pipeline: LevelPipeline, stock: Any
) -> None:
    derived = StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False)
    given = {"height": 72, "width": 88}
    if pipeline.level.fused:
        with pytest.raises(SdoptError, match=r"multiples of 2 \(16 px.* these are \(9, 11\)"):
            generate(derived, **given)
    else:
        np.testing.assert_allclose(generate(derived, **given), generate(stock, **given), atol=LIMIT)


def test_the_level_itself_generates_as_before(pipeline: LevelPipeline) -> None:
    wanted = generate(pipeline)
    generate(AutoPipelineForImage2Image.from_pipe(pipeline), image=image())
    assert np.array_equal(generate(pipeline), wanted)


@pytest.mark.parametrize("name", ["from_pipe", "from_pretrained", "components"])
def test_a_level_pipeline_without_a_level_is_refused_with_the_next_step(
    name: str, pipeline: LevelPipeline, micro_source: Source
) -> None:
    makers: dict[str, Any] = {
        "from_pipe": lambda: LevelPipeline.from_pipe(pipeline),
        "from_pretrained": lambda: LevelPipeline.from_pretrained(micro_source.folder, **UNCHECKED),
        "components": lambda: LevelPipeline(**pipeline.components, requires_safety_checker=False),
    }
    with pytest.raises(SdoptError, match=r"level.*sdopt\.load_pipeline\(LEVEL, source=FOLDER\)"):
        generate(makers[name]())
