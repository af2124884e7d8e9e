"""Random weights have Stable Diffusion 1.5's exact architecture and a prompt path that is real."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.models import modeling_utils
from transformers import CLIPTextConfig, CLIPTextModel

from sdopt.pipelines.workload import PHOTO_REQUESTS
from sdopt.weights import sd15

# Of stable-diffusion-v1-5 and of madebyollin/taesd, as published.
PARAMETERS = {
    "unet": (lambda: UNet2DConditionModel(**sd15.UNET), 859_520_964),
    "vae": (lambda: AutoencoderKL(**sd15.VAE), 83_653_863),
    "text": (lambda: CLIPTextModel(CLIPTextConfig(**sd15.TEXT)), 123_060_480),
    "tiny": (lambda: AutoencoderTiny(**sd15.TINY_VAE), 2_445_063),
}


@pytest.mark.parametrize(("make", "expected"), PARAMETERS.values(), ids=PARAMETERS)
def test_every_part_has_the_published_number_of_parameters(make: Any, expected: int) -> None:
    with torch.device("meta"):
        module = make()
    assert sum(parameter.numel() for parameter in module.parameters()) == expected


def test_random_weights_are_the_same_each_time_and_leave_the_seed_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    torch.manual_seed(7)
    with monkeypatch.context() as patch:
        patch.setattr(modeling_utils.logger, "warning", None)  # nothing is to be warned of
        first = sd15.random_tiny_vae(cpu, torch.float16).state_dict()
    generated = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), generated)
    second = sd15.random_tiny_vae(cpu, torch.float16).state_dict()
    assert {value.dtype for value in first.values()} == {torch.float16}
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_tokenizer_pads_to_77_with_clips_marks() -> None:
    tokenizer = sd15.tokenizer()
    ids = tokenizer(
        "an astronaut, 35mm", padding="max_length", max_length=tokenizer.model_max_length
    ).input_ids
    assert len(ids) == sd15.MAX_TOKENS
    assert (ids[0], ids[-1]) == (sd15.START_ID, sd15.END_ID)
    assert len(set(ids)) == 2 + 2 + 1 + 4  # marks, two words, a comma, "3", "5", "m" and its end
    assert max(ids) < sd15.TEXT_TOKENS


@pytest.mark.parametrize("request_", PHOTO_REQUESTS, ids=lambda request: request.name)
def test_the_built_in_prompts_fit(request_: Any) -> None:
    tokenizer = sd15.tokenizer()
    for text in (request_.prompt, request_.negative_prompt):
        ids = tokenizer(text).input_ids
        assert len(ids) <= sd15.MAX_TOKENS
        assert sd15.END_ID not in ids[1:-1], "an unknown letter"
