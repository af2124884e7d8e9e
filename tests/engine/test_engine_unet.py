"""The fused UNet predicts what diffusers' does, from the module's own weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from references import error, random
from torch import Tensor

from sdopt.engine.joining import merged_products
from sdopt.engine.modules import channels_first, channels_last, hoist
from sdopt.engine.unet import SUPPORTED, FusedUNet, check_supported
from sdopt.errors import SdoptError
from sdopt.miniature import MODEL_DIR
from studies.feature_caching.split import full_step, shallow_step

EXACT = 1e-5
"""Relative error that float32 may have after a whole UNet."""
TEXT_WIDTH = 16
SD15_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}


def random_unet(**changes: Any) -> Any:
    """Stable Diffusion 1.5's block types and its two layers a block, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config: dict[str, Any] = {
            "sample_size": 8,
            **SD15_BLOCKS,
            "block_out_channels": (8, 16, 24),
            "layers_per_block": 2,
            "cross_attention_dim": TEXT_WIDTH,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
        }
        unet = UNet2DConditionModel(**{**config, **changes}).eval()
        for module in unet.modules():  # norms that start as identities would hide a swapped one
            if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm):
                torch.nn.init.normal_(module.weight, 1.0, 0.2)
                torch.nn.init.normal_(module.bias, 0.0, 0.2)
    return unet


UNETS = {
    "miniature": lambda: UNet2DConditionModel.from_pretrained(MODEL_DIR / "unet"),
    "two layers": random_unet,
    "three layers": lambda: random_unet(layers_per_block=3),
    "two transformers a layer": lambda: random_unet(transformer_layers_per_block=2),
    "several transformers": lambda: random_unet(transformer_layers_per_block=(1, 3, 2)),
    "no attention at full size": lambda: random_unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    ),
    "other heads": lambda: random_unet(attention_head_dim=(1, 2, 4)),
    "another embedding of time": lambda: random_unet(flip_sin_to_cos=False, freq_shift=1),
}
ATTENTION_AT_FULL_SIZE = [name for name in UNETS if name != "no attention at full size"]
"""What `studies.feature_caching.split` can split."""


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    torch.set_num_threads(1)  # as conftest.py has it: more get in each other's way
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=UNETS)
def unet(request: pytest.FixtureRequest) -> Any:
    return UNETS[request.param]()


@pytest.fixture(scope="module")
def fused(unet: Any) -> FusedUNet:
    return FusedUNet(unet=unet)


def inputs(unet: Any, images: int = 2, height: int = 8, width: int = 8) -> tuple[Tensor, Tensor]:
    text = random(images, 5, unet.config.cross_attention_dim, seed=2)
    return random(images, 4, height, width, seed=1), text


@pytest.mark.parametrize(
    ("images", "height", "width"), [(1, 8, 8), (3, 8, 8), (2, 16, 8), (1, 8, 24)]
)
def test_it_predicts_what_diffusers_does(
    images: int, height: int, width: int, unet: Any, fused: FusedUNet
) -> None:
    sample, text = inputs(unet, images, height, width)
    for time in (1, 500, 999):
        ready = hoist(fused, time, text)
        found = fused(channels_last(sample), ready.shift, ready.context)
        wanted = unet(sample, time, encoder_hidden_states=text).sample
        assert error(channels_first(found), wanted) < EXACT


def test_equal_halves_are_computed_once_as_far_as_the_first_look_at_the_prompts(
    unet: Any, fused: FusedUNet
) -> None:
    sample, text = inputs(unet, 4)
    x = channels_last(torch.cat([sample[:2]] * 2))
    ready = hoist(fused, 500, text)
    wanted, deep = fused.store(x, ready.shift, ready.context)
    counted = fused.twins
    found, features = fused.store(x, ready.shift, ready.context, twins=True)
    assert fused.twins == counted + 1
    assert error(found, wanted) < EXACT
    assert error(features, deep) < EXACT
    # Nothing of the second half is read: that is what it saves.
    x[2:] = float("nan")
    again, _ = fused.store(x, ready.shift, ready.context, twins=True)
    assert error(again, wanted) < EXACT


def test_shifts_of_many_timesteps_are_those_of_each(fused: FusedUNet) -> None:
    times = torch.tensor([1.0, 300.0, 999.0])
    together = fused.shifts(times)
    assert len(together) == sum(
        type(module).__name__ == "ResnetBlock2D" for module in fused.unet.modules()
    )
    for row, time in enumerate(times):
        for module, alone in fused.shifts(time.reshape(1)).items():
            assert error(together[module][row], alone[0]) < EXACT


def test_a_shift_is_the_projected_time_and_the_convolutions_bias(
    unet: Any, fused: FusedUNet
) -> None:
    time = torch.tensor([300.0])
    embedded = unet.time_embedding(unet.time_proj(time))
    block = unet.down_blocks[0].resnets[0]
    wanted = block.time_emb_proj(torch.nn.functional.silu(embedded)) + block.conv1.bias
    assert error(fused.shifts(time)[block], wanted) < EXACT


def test_the_context_is_every_cross_attentions_keys_and_values(unet: Any, fused: FusedUNet) -> None:
    text = inputs(unet)[1]
    counted = fused.contexts
    context = fused.context(text)
    assert fused.contexts == counted + 1
    blocks = [m for m in unet.modules() if type(m).__name__ == "BasicTransformerBlock"]
    assert list(context) == [block.attn2 for block in blocks]
    for module, (keys, values) in context.items():
        assert error(keys, module.to_k(text)) < EXACT
        assert error(values, module.to_v(text)) < EXACT


def test_a_shallow_step_from_its_own_features_is_the_full_one(unet: Any, fused: FusedUNet) -> None:
    sample, text = inputs(unet)
    ready = hoist(fused, 300, text)
    noise, deep = fused.store(channels_last(sample), ready.shift, ready.context)
    found = fused.shallow(channels_last(sample), deep, ready.shift, ready.context)
    assert torch.equal(found, noise)


@pytest.mark.parametrize("unet", ATTENTION_AT_FULL_SIZE, indirect=True)
def test_full_and_shallow_steps_are_those_of_the_split_unet(unet: Any, fused: FusedUNet) -> None:
    sample, text = inputs(unet)
    later = random(*sample.shape, seed=5)
    wanted, features = full_step(unet, sample, torch.tensor(300), text)
    ready = hoist(fused, 300, text)
    found, deep = fused.store(channels_last(sample), ready.shift, ready.context)
    assert error(channels_first(found), wanted) < EXACT
    assert error(channels_first(deep), features) < EXACT
    wanted = shallow_step(unet, later, torch.tensor(200), text, features)
    ready = hoist(fused, 200, text)
    found = fused.shallow(channels_last(later), deep, ready.shift, ready.context)
    assert error(channels_first(found), wanted) < EXACT


def test_joined_weights_stay_the_modules_own() -> None:
    unet = random_unet()
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    fused = FusedUNet(unet=unet)
    after = unet.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    for attention, joined in fused.joined.items():
        width = joined.shape[1]
        parts = (attention.to_q.weight, attention.to_k.weight, attention.to_v.weight)
        for start, weight in enumerate(parts):
            assert weight.data_ptr() == joined[start * width :].data_ptr()
    sample, text = inputs(unet)
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.to_k.weight.mul_(-2)  # written through
    ready = hoist(fused, 300, text)
    found = fused(channels_last(sample), ready.shift, ready.context)
    wanted = unet(sample, 300, encoder_hidden_states=text).sample
    assert error(channels_first(found), wanted) < EXACT


def test_weights_can_be_joined_again() -> None:
    unet = random_unet()
    sample, text = inputs(unet)
    wanted = unet(sample, 300, encoder_hidden_states=text).sample
    FusedUNet(unet=unet)
    again = FusedUNet(unet=unet)
    ready = hoist(again, 300, text)
    found = again(channels_last(sample), ready.shift, ready.context)
    assert error(channels_first(found), wanted) < EXACT


def test_two_products_without_anything_between_them_are_one() -> None:
    first, second = torch.nn.Linear(32, 8), torch.nn.Conv2d(8, 8, 1)
    x, hidden = random(7, 8), random(7, 32, seed=1)
    weight, bias = merged_products(first, second)
    assert weight.shape == (8, 8 + 32)
    wanted = second((x + first(hidden))[..., None, None])[..., 0, 0]
    assert error(torch.cat([x, hidden], 1) @ weight.T + bias, wanted) < EXACT


def test_merged_products_are_rounded_once() -> None:
    first, second = torch.nn.Linear(32, 8).half(), torch.nn.Conv2d(8, 8, 1).half()
    halves = merged_products(first, second)
    for half, exact in zip(halves, merged_products(first.float(), second.float()), strict=True):
        assert half.dtype == torch.float16
        assert torch.equal(half, exact.half())


OTHERWISE: dict[str, Any] = {
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "attention_type": "gated",
    "center_input_sample": True,
    "class_embed_type": "timestep",
    "conv_in_kernel": 1,
    "conv_out_kernel": 1,
    "cross_attention_norm": "layer_norm",
    "downsample_padding": 0,
    "dual_cross_attention": True,
    "encoder_hid_dim": 8,
    "encoder_hid_dim_type": "text_proj",
    "mid_block_only_cross_attention": True,
    "mid_block_scale_factor": 2,
    "mid_block_type": "UNetMidBlock2D",
    "num_class_embeds": 3,
    "only_cross_attention": True,
    "resnet_out_scale_factor": 2.0,
    "resnet_skip_time_act": True,
    "resnet_time_scale_shift": "scale_shift",
    "time_cond_proj_dim": 8,
    "time_embedding_act_fn": "silu",
    "time_embedding_type": "fourier",
    "timestep_post_act": "silu",
    "use_linear_projection": True,
}


@pytest.mark.parametrize("option", SUPPORTED)
def test_an_option_that_is_not_computed_is_refused_by_name(option: str) -> None:
    config = {**random_unet().config, option: OTHERWISE[option]}
    with pytest.raises(SdoptError) as caught:
        check_supported(config)
    assert f"{option}={SUPPORTED[option]!r}" in str(caught.value)
    assert repr(OTHERWISE[option]) in str(caught.value)


COMPUTED = {
    *("act_fn", "sample_size", "in_channels", "out_channels", "flip_sin_to_cos", "freq_shift"),
    *(
        "block_out_channels",
        "layers_per_block",
        "norm_num_groups",
        "norm_eps",
        "attention_head_dim",
    ),
    *("cross_attention_dim", "transformer_layers_per_block", "num_attention_heads"),
    *("reverse_transformer_layers_per_block", "time_embedding_dim"),
    *("down_block_types", "up_block_types"),
}
NUMERICS = {"dropout", "upcast_attention"}
"""Without a meaning for inference in float32."""
OF_OTHERS = {
    *("addition_time_embed_dim", "projection_class_embeddings_input_dim"),
    *("class_embeddings_concat", "addition_embed_type_num_heads"),
}
"""They say more about options that are refused."""


def test_every_option_of_the_class_is_computed_or_refused() -> None:
    options = {name for name in random_unet().config if not name.startswith("_")}
    assert options == COMPUTED | set(SUPPORTED) | NUMERICS | OF_OTHERS


def test_an_unknown_block_is_refused_by_name() -> None:
    unet = random_unet(
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "AttnDownBlock2D"),
    )
    with pytest.raises(SdoptError, match="this one has a AttnDownBlock2D"):
        FusedUNet(unet=unet)


def test_a_linear_projection_is_refused_before_anything_is_changed() -> None:
    unet = random_unet(use_linear_projection=True)
    own = [weight.data_ptr() for weight in unet.parameters()]
    with pytest.raises(SdoptError, match="use_linear_projection=False, this one has True"):
        FusedUNet(unet=unet)
    assert [weight.data_ptr() for weight in unet.parameters()] == own
