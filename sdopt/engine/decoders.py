"""The decoders of AutoencoderKL and AutoencoderTiny over the engine's fused operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sdopt.engine import ops
from sdopt.engine.unet import _flat, _taps, residual_block
from sdopt.engine.upsampling import upsample_weights
from sdopt.errors import SdoptError

Decoder = Callable[[Tensor], Tensor]
"""Latents (B, H, W, 4) to an image (B, 8 * H, 8 * W, 3)."""


class FusedDecoder:
    """The decoder of an AutoencoderKL: residual blocks, one attention, three doublings."""

    def __init__(self, decoder: Any) -> None:
        if not any(attention is not None for attention in decoder.mid_block.attentions):
            raise SdoptError("the engine does not compute a VAE without attention in its middle")
        activation = decoder.mid_block.resnets[0].nonlinearity
        if not isinstance(activation, nn.SiLU):
            raise SdoptError(
                f"the engine computes a VAE with SiLU, not {type(activation).__name__}"
            )
        self.decoder = decoder
        self.upsample = {
            module: upsample_weights(module.conv.weight)
            for module in decoder.modules()
            if type(module).__name__ == "Upsample2D"
        }

    def __call__(self, x: Tensor) -> Tensor:
        """The image, from -1 to 1."""
        decoder = self.decoder
        x = ops.convolution(x, _taps(decoder.conv_in), decoder.conv_in.bias)
        first, second = decoder.mid_block.resnets
        x = residual_block(first, x)
        x = self_attention(decoder.mid_block.attentions[0], x)
        x = residual_block(second, x)
        for block in decoder.up_blocks:
            for resnet in block.resnets:
                x = residual_block(resnet, x)
            for sampler in block.upsamplers or ():
                x = ops.upsample_convolution(x, self.upsample[sampler], sampler.conv.bias)
        x = ops.group_norm(x, decoder.conv_norm_out, silu=True)
        return ops.convolution(x, _taps(decoder.conv_out), decoder.conv_out.bias)


def self_attention(module: Any, x: Tensor) -> Tensor:
    """The decoder's Attention over all pixels, with its GroupNorm and its residual."""
    images, height, width, channels = x.shape
    tokens = ops.group_norm(x, module.group_norm).reshape(images, height * width, channels)
    q, k, v = (
        ops.linear(tokens, one.weight, one.bias) for one in (module.to_q, module.to_k, module.to_v)
    )
    attended = ops.attention(q, k, v, module.heads).reshape(x.shape)
    out = module.to_out[0]
    return ops.linear(attended, out.weight, out.bias, residual=x)


class FusedTinyDecoder:
    """The decoder of an AutoencoderTiny (TAESD): convolutions, ReLU and doublings."""

    def __init__(self, decoder: Any) -> None:
        self.steps: list[Decoder] = []
        layers = list(decoder.layers)
        while layers:
            layer = layers.pop(0)
            name = type(layer).__name__
            if isinstance(layer, nn.Upsample):
                _check_nearest(layer)
                self.steps.append(_doubling(layers.pop(0)))
            elif isinstance(layer, nn.Conv2d):
                relu = bool(layers) and isinstance(layers[0], nn.ReLU)
                self.steps.append(_convolving(layer, relu=relu))
                layers = layers[1:] if relu else layers
            elif name == "AutoencoderTinyBlock":
                self.steps.append(_tiny_block(layer))
            else:
                raise SdoptError(f"the engine does not compute a Tiny VAE with {name}")

    def __call__(self, x: Tensor) -> Tensor:
        """The image, from -1 to 1."""
        x = torch.tanh(x / 3) * 3
        for step in self.steps:
            x = step(x)
        return x.mul(2).sub(1)


def _check_nearest(layer: nn.Upsample) -> None:
    if layer.mode != "nearest" or layer.scale_factor != 2:
        raise SdoptError(
            "the engine doubles a Tiny VAE's images (nearest), it does not scale them by "
            f"{layer.scale_factor} ({layer.mode})"
        )


def _convolving(conv: Any, *, relu: bool) -> Decoder:
    weight = _taps(conv)
    return lambda x: ops.convolution(x, weight, conv.bias, relu=relu)


def _doubling(conv: Any) -> Decoder:
    weights = upsample_weights(conv.weight)
    return lambda x: ops.upsample_convolution(x, weights, conv.bias)


def _tiny_block(module: Any) -> Decoder:
    """AutoencoderTinyBlock: three convolutions, the residual inside the last ReLU."""
    first, second, third = (_taps(module.conv[i]) for i in (0, 2, 4))
    biases = [module.conv[i].bias for i in (0, 2, 4)]
    skip = None if isinstance(module.skip, nn.Identity) else _flat(module.skip)

    def block(x: Tensor) -> Tensor:
        hidden = ops.convolution(x, first, biases[0], relu=True)
        hidden = ops.convolution(hidden, second, biases[1], relu=True)
        outer = x if skip is None else ops.linear(x, skip)
        return ops.convolution(hidden, third, biases[2], residual=outer, relu=True)

    return block


def fused_decoder(vae: Any) -> FusedDecoder | FusedTinyDecoder:
    """The engine's form of the decoder of an AutoencoderKL or an AutoencoderTiny."""
    kind = type(vae).__name__
    if kind == "AutoencoderKL":
        return FusedDecoder(vae.decoder)
    if kind == "AutoencoderTiny":
        return FusedTinyDecoder(vae.decoder)
    raise SdoptError(f"the engine decodes with AutoencoderKL or AutoencoderTiny, not {kind}")
