"""A call of the engine is parsed once, on the host, into a request that nobody changes."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch

from sdopt.errors import SdoptError
from sdopt.pipelines.engine_request import EngineRequest, ModelSize, parse_request

MODEL = ModelSize(sides_px=(512, 512), latent_px=8, channels=4)


def parsed(**given: Any) -> EngineRequest:
    own = {"prompt": "a cat", "num_inference_steps": 20, "guidance_scale": 7.5}
    return parse_request("turbo", MODEL, {**own, **given})


def test_what_is_left_out_is_the_models_or_the_default() -> None:
    assert parsed() == EngineRequest(
        prompts=("a cat",),
        negatives=("",),
        height=512,
        width=512,
        steps=20,
        guidance_scale=7.5,
        generator=None,
        latents=None,
        lora_scale=None,
        output_type="pil",
        return_dict=True,
    )


def test_every_image_has_a_prompt_and_with_guidance_a_negative_one() -> None:
    several = {"prompt": ["a", "b"], "num_images_per_prompt": 2}
    assert parsed(**several).prompts == ("a", "a", "b", "b")
    assert parsed(**several, negative_prompt="c").negatives == ("c",) * 4
    assert parsed(**several, negative_prompt=["c", "d"]).negatives == ("c", "c", "d", "d")
    assert parsed(**several, guidance_scale=1).negatives == ()


def test_numbers_of_other_types_become_pythons_own() -> None:
    request = parsed(num_inference_steps=np.int64(3), guidance_scale=np.float32(2))
    assert (type(request.steps), type(request.guidance_scale)) == (int, float)


@pytest.mark.parametrize(
    ("given", "scale"), [(None, None), ({}, None), ({"scale": 0.5}, 0.5), ({"scale": 1}, 1.0)]
)
def test_a_scale_of_lora_is_told_from_none(given: Any, scale: float | None) -> None:
    assert parsed(cross_attention_kwargs=given).lora_scale == scale


def test_latents_have_the_size_of_what_was_asked_for() -> None:
    latents = torch.zeros(1, 4, 8, 16)
    assert parsed(latents=latents, height=64, width=128).latents is latents
    with pytest.raises(SdoptError, match=r"latents are \(1, 4, 8, 16\); 1 of 512 x 512 px are"):
        parsed(latents=latents)


def test_arguments_of_no_use_may_be_given_as_nothing() -> None:
    nothing: dict[str, Any] = {"eta": 0.0, "guidance_rescale": 0.0, "timesteps": None}
    assert parsed(**nothing) == parsed()
    with pytest.raises(SdoptError, match=r"level 'turbo' .* cannot use timesteps; it takes prompt"):
        parsed(timesteps=[1])


def test_a_request_is_frozen_and_leaves_what_was_given() -> None:
    given = {"prompt": ["a"], "num_inference_steps": 2, "guidance_scale": 3.0}
    request = parse_request("turbo", MODEL, given)
    assert given == {"prompt": ["a"], "num_inference_steps": 2, "guidance_scale": 3.0}
    with pytest.raises(FrozenInstanceError):
        request.steps = 3  # type: ignore[misc]
