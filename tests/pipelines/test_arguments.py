"""Arguments do what they do to stock diffusers, and a call leaves nothing behind for the next."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from own_code import own_code

from sdopt.errors import SdoptError
from sdopt.levels import BASELINE, COMPILED, DPM_20_CUTOFF, EXPRESS, ONE_GRAPH, TURBO, Level
from sdopt.pipelines.arguments import DEFAULTS, without_defaults
from sdopt.pipelines.loading import load_tiny_vae
from sdopt.pipelines.pipeline import (
    LevelPipeline,
    apply_channels_last,
    apply_scheduler,
    build,
    load_weights,
)
from sdopt.weights.sources import Source

CPU = torch.device("cpu")
STEPS = 5
EAGER = [replace(BASELINE, steps=STEPS), replace(DPM_20_CUTOFF, compiled=False, steps=STEPS)]
ENGINE = [replace(level, compiled=False, steps=STEPS) for level in (ONE_GRAPH, EXPRESS, TURBO)]
TRACED = replace(COMPILED, steps=2)
GIVEN_OTHERWISE = ("num_inference_steps", "guidance_scale")
"""Arguments for which a level has a default of its own."""


def built(source: Source, level: Level) -> LevelPipeline:
    return build(source, level, CPU)


@pytest.fixture(scope="module", params=EAGER + ENGINE, ids=lambda level: str(level.name))
def pipeline(request: pytest.FixtureRequest, micro_source: Source) -> LevelPipeline:
    return built(micro_source, request.param)


@pytest.fixture(scope="module", params=EAGER, ids=lambda level: str(level.name))
def eager(request: pytest.FixtureRequest, micro_source: Source) -> LevelPipeline:
    return built(micro_source, request.param)


@pytest.fixture(scope="module", params=ENGINE, ids=lambda level: str(level.name))
def engine(request: pytest.FixtureRequest, micro_source: Source) -> LevelPipeline:
    return built(micro_source, request.param)


@pytest.fixture(scope="module")
def traced(micro_source: Source) -> Iterator[LevelPipeline]:
    """A compiled level, as Dynamo traces it; the C++ compiler is spared."""
    compiles = torch.compile
    with pytest.MonkeyPatch.context() as patch, own_code():
        patch.setattr(
            torch,
            "compile",
            lambda function, mode, **how: compiles(function, backend="eager", **how),
        )
        yield built(micro_source, TRACED)


def stock(source: Source, level: Level) -> StableDiffusionPipeline:
    plain = load_weights(source, CPU, torch.float32)
    apply_scheduler(plain, level)
    if level.decoder == "tiny-vae":
        plain.register_modules(vae=load_tiny_vae(source, CPU, torch.float32))
    apply_channels_last(plain, level)
    plain.set_progress_bar_config(disable=True)
    return StableDiffusionPipeline(**plain.components, requires_safety_checker=False)


def generate(pipeline: Any, **more: Any) -> Any:
    given = {"prompt": "a cat", "generator": torch.Generator().manual_seed(1), **more}
    return pipeline(**{"output_type": "np", **given}).images


@pytest.mark.parametrize("name", sorted({*DEFAULTS} - {"prompt", "generator", "output_type"}))
def test_an_argument_given_as_its_own_default_says_nothing(
    name: str, pipeline: LevelPipeline
) -> None:
    given = {name: DEFAULTS[name]}
    if name in GIVEN_OTHERWISE:  # then it is what was asked for
        given = {name: {"num_inference_steps": STEPS, "guidance_scale": 7.5}[name]}
    if name == "return_dict":
        assert hasattr(pipeline("a cat", **given), "images")
    assert np.array_equal(generate(pipeline, **given), generate(pipeline))


def test_all_defaults_at_once_and_by_position(pipeline: LevelPipeline) -> None:
    parameters = list(inspect.signature(StableDiffusionPipeline.__call__).parameters.values())[2:]
    values = {one.name: one.default for one in parameters if one.default is not one.empty}
    values |= {"num_inference_steps": STEPS, "output_type": "np"}
    values |= {"generator": torch.Generator().manual_seed(1)}
    found = pipeline("a cat", *values.values()).images
    assert np.array_equal(found, generate(pipeline))


def test_what_the_default_of_diffusers_says_is_not_taken_for_the_levels(
    pipeline: LevelPipeline,
) -> None:
    seen: list[int] = []
    handle = pipeline.unet.register_forward_pre_hook(lambda *_: seen.append(1))
    try:
        generate(pipeline, num_inference_steps=DEFAULTS["num_inference_steps"])
    except SdoptError:
        assert pipeline.engine is not None  # which may refuse to be watched
    else:
        assert len(seen) == 50
    finally:
        handle.remove()


@pytest.mark.parametrize("tensors", [None, ["latents"], ["latents", "prompt_embeds"], []])
def test_tensors_for_a_callback_work_with_and_without_one(
    tensors: list[str] | None, eager: LevelPipeline, micro_source: Source
) -> None:
    seen: list[list[str]] = []

    def watch(_: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(sorted(given))
        return {}

    given = {"callback_on_step_end_tensor_inputs": tensors}
    found = generate(eager, **given)
    assert np.array_equal(generate(eager, **given, callback_on_step_end=watch), found)
    wanted = {"latents"} if tensors is None else set(tensors)
    assert len(seen) == STEPS
    assert all(wanted <= set(names) for names in seen)
    assert np.array_equal(found, generate(eager))


def test_only_equal_values_of_one_type_are_defaults() -> None:
    given = {"eta": 0.0, "guidance_rescale": False, "height": 0, "latents": torch.zeros(1)}
    kept = without_defaults(
        {**given, "guidance_scale": 7.5, "other": None}, but={"guidance_scale": 3}
    )
    assert set(kept) == {"guidance_rescale", "height", "latents", "guidance_scale", "other"}


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_clip_skip_is_that_of_stock_diffusers_where_that_can_do_it(
    clip_skip: int, eager: LevelPipeline, micro_source: Source
) -> None:
    """The stock pipeline gets the name that diffusers asks for, for as long as it lives."""
    plain = stock(micro_source, replace(eager.level, cfg_cutoff=None))
    vars(plain.text_encoder)["text_model"] = plain.text_encoder
    level = replace(eager.level, cfg_cutoff=None)
    found = generate(built(micro_source, level), clip_skip=clip_skip)
    given = {"num_inference_steps": STEPS, "guidance_scale": 7.5}
    np.testing.assert_allclose(found, generate(plain, **given, clip_skip=clip_skip), atol=1e-6)
    assert np.array_equal(found, generate(built(micro_source, level))) == (clip_skip == 0)


def test_clip_skip_leaves_no_trace_in_the_text_encoder(eager: LevelPipeline) -> None:
    before, keys = generate(eager), set(eager.text_encoder.state_dict())
    assert not np.array_equal(generate(eager, clip_skip=1), before)
    assert "text_model" not in vars(eager.text_encoder)
    assert set(eager.text_encoder.state_dict()) == keys
    assert np.array_equal(generate(eager), before)


@pytest.mark.slow
def test_clip_skip_on_a_compiled_level(traced: LevelPipeline, micro_source: Source) -> None:
    plain = built(micro_source, replace(TRACED, compiled=False))
    found, wanted = (generate(one, clip_skip=1) for one in (traced, plain))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    "more", [{"clip_skip": 1}, {"cross_attention_kwargs": {"other": 1}}], ids=str
)
def test_the_engine_refuses_them_by_name(more: dict[str, Any], engine: LevelPipeline) -> None:
    with pytest.raises(SdoptError, match=rf"{next(iter(more))}"):
        generate(engine, **more)


@pytest.mark.parametrize("peft", [True, False], ids=["peft", "without-peft"])
@pytest.mark.parametrize("given", [{"scale": 0.5}, {"scale": 1.0}, {}], ids=str)
def test_cross_attention_kwargs_without_a_lora_change_nothing(
    given: dict[str, Any], peft: bool, eager: LevelPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(peft, monkeypatch)
    assert np.array_equal(generate(eager, cross_attention_kwargs=given), generate(eager))


@pytest.mark.slow
@pytest.mark.parametrize("peft", [True, False], ids=["peft", "without-peft"])
def test_nor_do_they_on_a_compiled_level(
    peft: bool, traced: LevelPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = generate(traced)
    without(peft, monkeypatch)
    found = generate(traced, cross_attention_kwargs={"scale": 0.5, "other": 1})
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def without(peft: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers with or without its optional package."""
    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion.USE_PEFT_BACKEND"
    monkeypatch.setattr(module, peft)
    monkeypatch.setattr("diffusers.utils.USE_PEFT_BACKEND", peft)


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def test_the_engine_generates_the_same_under_autocast(engine: LevelPipeline) -> None:
    with autocast():
        first = generate(engine, num_inference_steps=7)
    assert np.array_equal(generate(engine, num_inference_steps=7), first)


@pytest.mark.parametrize("around", [autocast, nullcontext], ids=["autocast", "plain"])
def test_an_eager_level_does_under_autocast_what_stock_diffusers_does(
    around: Callable[[], Any], eager: LevelPipeline, micro_source: Source
) -> None:
    level = replace(eager.level, cfg_cutoff=None)
    own, plain = built(micro_source, level), stock(micro_source, level)
    with around():
        found = generate(own)
        wanted = generate(plain, num_inference_steps=STEPS, guidance_scale=7.5)
    assert np.array_equal(found, wanted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a:UserWarning")
def test_a_compiled_level_does_under_autocast_what_the_eager_one_does(
    traced: LevelPipeline, micro_source: Source
) -> None:
    plain = built(micro_source, replace(TRACED, compiled=False))
    for around in (autocast, nullcontext, autocast):
        with around():
            np.testing.assert_allclose(generate(traced), generate(plain), atol=1e-5)


OTHER: dict[str, Any] = {
    "prompt": "a large dog",
    "negative_prompt": "a bird",
    "height": 64,
    "width": 128,
    "num_inference_steps": 3,
    "guidance_scale": 2.0,
    "num_images_per_prompt": 2,
}


def test_a_request_leaves_nothing_for_the_next_one(
    pipeline: LevelPipeline, micro_source: Source
) -> None:
    """Requests that differ in one thing or in all, in one order and then in another."""
    size = {"height": 64, "width": 64}
    requests = [size, *({**size, name: value} for name, value in OTHER.items()), OTHER]

    def generated(pipeline: LevelPipeline, index: int) -> Any:
        return generate(pipeline, **requests[index], generator=seeded(index))

    last = len(requests) - 1
    found = {index: generated(pipeline, index) for index in range(len(requests))}
    for index in (last, 0):
        fresh = built(micro_source, pipeline.level)
        np.testing.assert_array_equal(generated(fresh, index), found[index])
    for index in (3, 0, 5, 1, last, 2, 0, 6, 4, 7, 0):
        np.testing.assert_array_equal(generated(pipeline, index), found[index])


def seeded(index: int) -> torch.Generator:
    return torch.Generator().manual_seed(1 + index)


def test_a_call_that_failed_leaves_nothing_for_the_next_one(eager: LevelPipeline) -> None:
    wanted = generate(eager)
    for step in (0, STEPS - 2):

        def fail(_: Any, now: int, timestep: Any, tensors: Any, step: int = step) -> Any:
            if now == step:
                raise ZeroDivisionError
            return {}

        with pytest.raises(ZeroDivisionError):
            generate(eager, callback_on_step_end=fail, guidance_scale=2.0)
        assert np.array_equal(generate(eager), wanted)


def test_what_the_user_gives_is_left_as_it_is(eager: LevelPipeline) -> None:
    tensors, kwargs = ["latents"], {"scale": 0.5}
    generate(eager, callback_on_step_end_tensor_inputs=tensors, cross_attention_kwargs=kwargs)
    assert (tensors, kwargs) == (["latents"], {"scale": 0.5})
