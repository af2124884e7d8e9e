"""Put the engine's forward passes underneath a pipeline's own modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from sdopt.engine.decoders import fused_decoder
from sdopt.engine.text import check_encoder, encode_text, joined_attentions
from sdopt.engine.unet import Context, FusedUNet, Shift

FUSED_MARK = "sdopt::fused"
"""How each run of a fused forward pass is named in a profile."""


@dataclass(frozen=True, kw_only=True)
class Hoisted:
    """What the UNet computes from the timestep and the prompts alone, done before the loop."""

    shift: Shift
    context: Context


@torch.no_grad()  # or what is computed from the weights would keep copies of them for gradients
def fuse_modules(pipeline: Any) -> None:
    """Replace the forward passes of text encoder, UNet and decoder, in place.

    The UNet takes `hoisted` besides diffusers' arguments; with `store` it also returns its deep
    features, and given `deep` it computes the last layer alone.
    """
    check_encoder(pipeline.text_encoder)
    encoder, unet, decoder = pipeline.text_encoder, pipeline.unet, fused_decoder(pipeline.vae)
    fused, joined = FusedUNet(unet=unet), joined_attentions(encoder)

    def encode(input_ids: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        with record_function(FUSED_MARK):
            return (encode_text(encoder, joined, input_ids),)

    def predict(
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Tensor,
        *_: Any,
        hoisted: Hoisted | None = None,
        deep: Tensor | None = None,
        store: bool = False,
        **__: Any,
    ) -> tuple[Tensor, ...]:
        with record_function(FUSED_MARK):
            ready = hoisted or hoist(fused, timestep, encoder_hidden_states)
            x = channels_last(sample)
            if deep is not None:
                return (channels_first(fused.shallow(x, deep, ready.shift, ready.context)),)
            noise, features = fused.store(x, ready.shift, ready.context)
            return (channels_first(noise), features) if store else (channels_first(noise),)

    def decode(sample: Tensor, *_: Any) -> Tensor:
        with record_function(FUSED_MARK):
            return channels_first(decoder(channels_last(sample)))

    encoder.forward, unet.forward, pipeline.vae.decoder.forward = encode, predict, decode
    pipeline.fused_unet = fused


def hoist(fused: FusedUNet, timestep: Any, text: Tensor) -> Hoisted:
    """What one step needs from its timestep and the encoded prompts."""
    times = torch.as_tensor(timestep, device=text.device).reshape(1)
    shift = {module: rows[0] for module, rows in fused.shifts(times).items()}
    return Hoisted(shift=shift, context=fused.context(text))


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) as a contiguous (B, H, W, C); no copy if it is stored so already."""
    return x.permute(0, 2, 3, 1).contiguous()


def channels_first(x: Tensor) -> Tensor:
    """(B, H, W, C) as (B, C, H, W), the same memory."""
    return x.permute(0, 3, 1, 2)
