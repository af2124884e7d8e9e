"""The split UNet predicts what the whole one does, bit for bit, and reuses what it should."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from sdopt.miniature import MODEL_DIR
from studies.feature_caching.split import full_step, shallow_step

TEXT_WIDTH = 16
T = torch.tensor(500)


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    torch.set_num_threads(1)  # as conftest.py has it: more get in each other's way
    with torch.no_grad():
        yield


def tiny_unet(**changes: Any) -> Any:
    """Stable Diffusion 1.5's block types and its two layers a block, with random weights."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 2,
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**config, **changes}).eval()


@pytest.fixture(scope="module")
def tiny() -> Any:
    return tiny_unet()


@pytest.fixture(scope="module")
def miniature() -> Any:
    return UNet2DConditionModel.from_pretrained(MODEL_DIR / "unet")


def inputs(unet: Any, samples: int = 2, height: int = 8, width: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(samples, 4, height, width, generator=generator)
    text = torch.randn(samples, 5, unet.config.cross_attention_dim, generator=generator)
    return sample, text


def assert_exact(unet: Any, sample: Tensor, text: Tensor, layers: int) -> None:
    whole = unet(sample, T, text, return_dict=False)[0]
    noise, features = full_step(unet, sample, T, text, layers=layers)
    assert torch.equal(noise, whole)
    again = shallow_step(unet, sample, T, text, features, layers=layers)
    assert torch.equal(again, whole)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("size", [(8, 8), (9, 6)], ids=["even", "odd"])
def test_a_tiny_unet_is_split_exactly(tiny: Any, layers: int, size: tuple[int, int]) -> None:
    assert_exact(tiny, *inputs(tiny, 2, *size), layers)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("samples", [1, 2])
def test_the_miniature_is_split_exactly(miniature: Any, layers: int, samples: int) -> None:
    assert_exact(miniature, *inputs(miniature, samples, 16, 16), layers)


def test_a_shallow_step_sees_its_own_sample_timestep_and_text(tiny: Any) -> None:
    sample, text = inputs(tiny)
    noise, features = full_step(tiny, sample, T, text)
    for changed in ((sample + 1, T, text), (sample, T + 100, text), (sample, T, text + 1)):
        assert not torch.equal(shallow_step(tiny, *changed, features), noise)


@pytest.mark.parametrize(("layers", "runs"), [(1, 0), (2, 1), (3, 2)])
def test_a_shallow_step_leaves_the_deep_unet_alone(tiny: Any, layers: int, runs: int) -> None:
    sample, text = inputs(tiny)
    _, features = full_step(tiny, sample, T, text, layers=layers)
    broken = copy.copy(tiny)
    broken._modules = {**tiny._modules, "mid_block": None}
    calls: list[int] = []
    hooks = [
        resnet.register_forward_hook(lambda *_: calls.append(1))
        for block in (*tiny.down_blocks, *tiny.up_blocks[:-1])
        for resnet in block.resnets
    ]
    shallow_step(broken, sample, T, text, features, layers=layers)
    for hook in hooks:
        hook.remove()
    assert len(calls) == runs


def test_features_of_the_conditional_half_serve_after_the_cutoff(miniature: Any) -> None:
    sample, text = inputs(miniature, 2, 16, 16)
    _, both = full_step(miniature, sample, T, text)
    _, one = full_step(miniature, sample[1:], T, text[1:])
    torch.testing.assert_close(both[1:], one)
