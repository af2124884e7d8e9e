"""The fused decoders generate what diffusers' AutoencoderKL and AutoencoderTiny generate."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from references import error, random
from torch import Tensor

from sdopt.engine.decoders import fused_decoder
from sdopt.engine.modules import channels_first, channels_last
from sdopt.errors import SdoptError
from sdopt.miniature import MODEL_DIR

EXACT = 1e-5
"""Relative error that float32 may have after a whole decoder."""


def kl(**changes: Any) -> Any:
    config: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 16, 24),
        "layers_per_block": 2,
        "norm_num_groups": 4,
    }
    return seeded(AutoencoderKL, {**config, **changes})


def tiny(**changes: Any) -> Any:
    config: dict[str, Any] = {
        "encoder_block_out_channels": (8,) * 4,
        "decoder_block_out_channels": (24,) * 4,
        "num_encoder_blocks": (1,) * 4,
        "num_decoder_blocks": (3, 2, 1, 1),
    }
    return seeded(AutoencoderTiny, {**config, **changes})


def seeded(kind: Any, config: dict[str, Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**config).eval()


VAES = {
    "the miniature's": lambda: AutoencoderKL.from_pretrained(MODEL_DIR / "vae"),
    "the miniature's tiny one": lambda: AutoencoderTiny.from_pretrained(MODEL_DIR / "tiny_vae"),
    "random": kl,
    "one layer a block": lambda: kl(layers_per_block=1),
    "random tiny": tiny,
}


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    torch.set_num_threads(1)  # as conftest.py has it: more get in each other's way
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=VAES)
def vae(request: pytest.FixtureRequest) -> Any:
    return VAES[request.param]()


def latents(*shape: int) -> Tensor:
    return random(*shape) * 4  # past what the Tiny VAE's tanh leaves alone


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 4, 8, 8), (2, 4, 16, 8), (1, 4, 3, 5)])
def test_a_decoder_generates_what_diffusers_does(
    shape: tuple[int, ...], layout: torch.memory_format, vae: Any
) -> None:
    vae.to(memory_format=layout)
    given = latents(*shape)
    found = fused_decoder(vae)(channels_last(given))
    assert error(channels_first(found), vae.decoder(given)) < EXACT


def test_weights_stay_the_modules_own(vae: Any) -> None:
    before = {name: weight.clone() for name, weight in vae.state_dict().items()}
    fused_decoder(vae)(channels_last(latents(1, 4, 4, 4)))
    after = vae.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def bilinear() -> Any:
    vae = tiny()
    upsample = next(m for m in vae.decoder.modules() if isinstance(m, torch.nn.Upsample))
    upsample.mode = "bilinear"
    return vae


@pytest.mark.parametrize(
    ("vae", "words"),
    [
        (SimpleNamespace(), "AutoencoderKL or AutoencoderTiny, not SimpleNamespace"),
        (kl(mid_block_add_attention=False), "a VAE without attention in its middle"),
        (kl(act_fn="gelu"), "computes a VAE with SiLU, not GELU"),
        (tiny(act_fn="gelu"), "does not compute a Tiny VAE with GELU"),
        (bilinear(), r"does not scale them by 2.* \(bilinear\)"),
    ],
    ids=["another class", "no attention", "another activation", "a GELU", "another upsampling"],
)
def test_what_is_not_computed_is_refused_by_name(vae: Any, words: str) -> None:
    with pytest.raises(SdoptError, match=words):
        fused_decoder(vae)
