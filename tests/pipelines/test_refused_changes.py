"""What a pipeline cannot generate with is refused by name, and never by an error from within."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.hooks import apply_layerwise_casting

from sdopt.engine.adapters import scaled_adapters
from sdopt.engine.text import pooled_text
from sdopt.errors import SdoptError, UnknownNameError
from sdopt.levels import BASELINE, DPM_20, HOISTED, ONE_GRAPH, TURBO, Level
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.prompts import without_learnt_words
from sdopt.weights.sources import Source, resolve

CPU = torch.device("cpu")
EAGER = replace(DPM_20, name="eager", compiled=False)
LEVELS = [EAGER, replace(ONE_GRAPH, compiled=False), HOISTED, TURBO]
ENGINE = LEVELS[1:]


def generated(pipeline: Any, **more: Any) -> Any:
    seed = torch.Generator().manual_seed(1)
    given = {"prompt": "a cat", "num_inference_steps": 2, "guidance_scale": 3.0}
    return pipeline(**{**given, "generator": seed, "output_type": "np", **more}).images[0]


@pytest.fixture(params=LEVELS, ids=lambda level: level.name)
def pipeline(request: pytest.FixtureRequest, micro_source: Source) -> LevelPipeline:
    return build(micro_source, request.param, CPU)


@pytest.fixture(params=ENGINE, ids=lambda level: level.name)
def engine(request: pytest.FixtureRequest, micro_source: Source) -> LevelPipeline:
    return build(micro_source, request.param, CPU)


@pytest.fixture
def hoisted(micro_source: Source) -> LevelPipeline:
    return build(micro_source, HOISTED, CPU)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_component_that_is_none_is_named(name: str, pipeline: LevelPipeline) -> None:
    setattr(pipeline, name, None)
    with pytest.raises(SdoptError, match=rf"the {name} of this pipeline is None.*load_pipeline\("):
        generated(pipeline)


def test_a_checker_without_its_extractor_is_named(hoisted: LevelPipeline) -> None:
    hoisted.safety_checker = lambda *_: None
    with pytest.raises(SdoptError, match="the feature_extractor of this pipeline is None"):
        generated(hoisted)


def test_what_a_call_does_not_need_may_be_none(micro_source: Source) -> None:
    """As in stock diffusers: embeddings need no text encoder, latents no decoder."""
    pipeline = build(micro_source, EAGER, CPU)
    text, empty = pipeline.encode_prompt("a cat", CPU, 1, True)
    wanted = generated(pipeline)
    given = {"prompt": None, "prompt_embeds": text}
    pipeline.text_encoder = pipeline.tokenizer = None
    assert np.array_equal(generated(pipeline, **given, negative_prompt_embeds=empty), wanted)
    assert generated(pipeline, **given, guidance_scale=1.0).shape == wanted.shape
    with pytest.raises(SdoptError, match="the tokenizer and the text_encoder of this pipeline"):
        generated(pipeline, **given)
    pipeline.vae = None
    generated(pipeline, **given, guidance_scale=1.0, output_type="latent")


ARRAYS: dict[str, Any] = {
    "guidance_scale": np.array([3.0]),
    "num_inference_steps": np.array([4, 4]),
    "latents": np.zeros((1, 4, 8, 8), np.float32),
    "prompt": np.array(["a cat"]),
    "negative_prompt": np.array(["a dog", "a cat"]),
    "cross_attention_kwargs": np.array([1, 2]),
    "generator": np.array([1, 2]),
    "height": np.array([64, 64]),
    "timesteps": np.array([500, 1]),
    "sigmas": np.array([5.0, 1.0]),
    "prompt_embeds": np.zeros((1, 2)),
    "guidance_rescale": np.array([0.0, 0.0]),
    "clip_skip": np.array([0, 1]),
    "output_type": np.array(["np", "pt"]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_is_refused_by_its_argument(name: str, engine: LevelPipeline) -> None:
    given = {"width": 64} if name == "height" else {}
    with pytest.raises(SdoptError, match=name) as caught:
        generated(engine, **given, **{name: ARRAYS[name]})
    assert "array(" not in str(caught.value)  # its shape, not its thousand values


PARTS: dict[str, Callable[[LevelPipeline], Any]] = {
    "unet.conv_in.weight is of torch.float64": lambda p: p.unet.to(torch.float64),
    "unet.mid_block.* is of torch.float64": lambda p: p.unet.mid_block.to(torch.float64),
    "text_encoder.* is of torch.float32 on meta": lambda p: p.text_encoder.to("meta"),
    "vae.* is of torch.float32 on meta": lambda p: p.vae.to("meta"),
    "unet.* is of torch.float32 on meta": lambda p: p.unet.to("meta"),
}


@pytest.mark.parametrize("words", PARTS)
def test_weights_of_another_kind_are_named(words: str, hoisted: LevelPipeline) -> None:
    """Twice: a change that was refused is one still."""
    generated(hoisted)
    PARTS[words](hoisted)
    for _ in range(2):
        with pytest.raises(SdoptError, match=words):
            generated(hoisted)


def test_all_parts_of_another_type_generate_as_stock(hoisted: LevelPipeline, stock: Any) -> None:
    for one in (hoisted, stock):
        for part in (one.unet, one.vae, one.text_encoder):
            part.to(torch.float64)
    assert np.abs(generated(hoisted) - generated(stock)).max() < 1e-4


@pytest.fixture
def stock(micro_source: Source) -> StableDiffusionPipeline:
    return as_stock(micro_source, EAGER)


def as_stock(source: Source, level: Level) -> StableDiffusionPipeline:
    parts = build(source, level, CPU)
    made = StableDiffusionPipeline(**parts.components, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_layerwise_casting_of_any_part_is_named(part: str, engine: LevelPipeline) -> None:
    apply_layerwise_casting(getattr(engine, part), torch.float8_e4m3fn, torch.float32)
    with pytest.raises(SdoptError, match=rf"level '{engine.level.name}'.*{part}.*'final'"):
        generated(engine)


def test_adapters_without_a_scale_have_none_to_change(hoisted: LevelPipeline) -> None:
    import peft

    config = peft.IA3Config(target_modules=["to_v"], feedforward_modules=[])
    peft.inject_adapter_in_model(config, hoisted.unet)
    with scaled_adapters([hoisted.unet], 0.5):
        pass
    with pytest.raises(SdoptError, match=r"is peft's Linear of peft\.tuners\.ia3"):
        generated(hoisted, cross_attention_kwargs={"scale": 0.5})


@torch.no_grad()
@pytest.mark.parametrize("times", [torch.tensor([1, 2]), torch.arange(4)], ids=str)
def test_timesteps_that_are_not_one_for_each_image_are_counted(
    times: Any, hoisted: LevelPipeline
) -> None:
    x, text = torch.zeros(3, 4, 8, 8), torch.zeros(3, 32, 16)
    with pytest.raises(SdoptError, match=rf"{len(times)} timesteps and 3 texts for 3 images"):
        hoisted.unet(x, times, encoder_hidden_states=text)


@torch.no_grad()
def test_a_text_that_is_too_long_is_named(hoisted: LevelPipeline) -> None:
    with pytest.raises(SdoptError, match="32 tokens at most, these are 99"):
        hoisted.text_encoder(torch.zeros(1, 99, dtype=torch.long))


def test_an_old_configurations_end_mark_is_the_largest_id(stock: Any) -> None:
    ids = torch.tensor([[5, 9, 7, 2], [2, 3, 4, 5]])
    stock.text_encoder.eos_token_id = 2
    wanted = stock.text_encoder(ids)
    found = pooled_text(stock.text_encoder, wanted.last_hidden_state, ids)
    assert torch.equal(found, wanted.pooler_output)


@pytest.mark.parametrize("level", [BASELINE, HOISTED], ids=lambda level: str(level.name))
def test_a_learnt_word_is_known_to_the_embedded_source(level: Level) -> None:
    """Of several vectors, in any case, and within a sentence; all other words are still checked."""
    source = resolve("embedded")
    pipeline = build(source, replace(level, steps=2), CPU)
    stock = as_stock(source, EAGER if level is HOISTED else level)
    width = stock.text_encoder.config.hidden_size
    # Ten times as large as the source's own: a hundred times as large, rounding is multiplied too.
    learnt = {"<toy>": torch.linspace(-0.3, 0.3, 2 * width).reshape(2, width)}
    prompt = "a large <toy> star at the top left"
    with pytest.raises(UnknownNameError, match="unknown prompt word '<toy>'"):
        generated(pipeline, prompt=prompt)
    for one in (pipeline, stock):
        one.load_textual_inversion(dict(learnt))
    found, wanted = (
        generated(one, prompt=prompt, negative_prompt="<TOY>") for one in (pipeline, stock)
    )
    assert np.abs(found - wanted).max() < 1e-4
    assert np.abs(found - generated(pipeline, prompt="a large star")).max() > 1e-3
    with pytest.raises(UnknownNameError, match="unknown prompt word 'starr'"):
        generated(pipeline, prompt="a <toy> starr")
    pipeline.unload_textual_inversion()
    with pytest.raises(UnknownNameError, match="unknown prompt word '<toy>'"):
        generated(pipeline, prompt=prompt)


def test_without_a_tokenizer_no_word_is_learnt() -> None:
    assert without_learnt_words("a cat", None) == "a cat"
