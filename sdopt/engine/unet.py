"""The forward pass of diffusers' UNet2DConditionModel, over the engine's fused operations.

It reads the modules' own weights and computes what they compute, for Stable Diffusion 1.x: the
class's options that such models do not use are refused by name when it is made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdopt.engine import ops
from sdopt.engine.float8 import NO_FLOAT8, Float8, Rounded
from sdopt.engine.joining import joined_projections, merged_products
from sdopt.engine.upsampling import upsample_weights
from sdopt.errors import SdoptError

SUPPORTED: Mapping[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "use_linear_projection": False,
}
"""The options of a UNet2DConditionModel that this forward pass was written for."""
BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")

Context = Mapping[nn.Module, tuple[Tensor, Tensor]]
"""Keys and values of the prompts, (images, tokens, width) each, by cross-attention module."""
Shift = Mapping[nn.Module, Tensor]
"""What a residual block's first convolution adds at a step, of shape (channels,), by block."""


@dataclass(kw_only=True)
class FusedUNet:
    """A UNet's weights, laid out for the engine; they stay the module's own wherever they can.

    Queries, keys and values of self-attention are one product: their weights are joined, and the
    module's own become views of the joined ones. A transformer's last two products, of its last
    feed-forward and its output, have no nonlinearity between them and are one as well. Products of
    `kinds`, of FLOAT8_KINDS, are in float8. What ran is
    counted: `contexts` of the prompts' keys and values, `embeddings` of timesteps, `wholes` of the
    UNet with its deep layers, `twins` of calls that computed two equal halves once.
    """

    unet: Any
    kinds: Collection[str] = ()
    joined: dict[nn.Module, Tensor] = field(default_factory=dict)
    upsample: dict[nn.Module, Tensor] = field(default_factory=dict)
    merged: dict[nn.Module, tuple[Tensor, Tensor]] = field(default_factory=dict)
    float8: Float8 = field(default_factory=Float8)
    contexts: int = 0
    embeddings: int = 0
    wholes: int = 0
    twins: int = 0

    def __post_init__(self) -> None:
        check_supported(self.unet.config)
        for module in self.unet.modules():
            kind = type(module).__name__
            if kind == "BasicTransformerBlock":
                one = module.attn1
                self.joined[one], _ = joined_projections((one.to_q, one.to_k, one.to_v))
            if kind == "Upsample2D":
                self.upsample[module] = upsample_weights(module.conv.weight)
            if kind == "Transformer2DModel":
                last = module.transformer_blocks[-1].ff.net[2]
                self.merged[module] = merged_products(last, module.proj_out)
            for name, owner, weight, norm in self._after_norms(module):
                if name in self.kinds:
                    self.float8.add(owner, weight, norm)

    def _after_norms(self, module: Any) -> Iterator[tuple[str, nn.Module, Tensor, nn.Module]]:
        """A module's products of norms' outputs: kind, owner and weight of each, and the norm."""
        kind = type(module).__name__
        if kind == "ResnetBlock2D":
            yield "conv1", module.conv1, _taps(module.conv1), module.norm1
            yield "conv2", module.conv2, _taps(module.conv2), module.norm2
        elif kind == "Transformer2DModel":
            yield "proj_in", module.proj_in, _flat(module.proj_in), module.norm
        elif kind == "BasicTransformerBlock":
            first = module.ff.net[0].proj
            yield "self-attention", module.attn1, self.joined[module.attn1], module.norm1
            yield "cross-attention", module.attn2.to_q, module.attn2.to_q.weight, module.norm2
            yield "feed-forward", first, first.weight, module.norm3

    @property
    def float8_products(self) -> int:
        """How many products were in float8 so far."""
        return self.float8.used

    def shifts(self, timesteps: Tensor) -> dict[nn.Module, Tensor]:
        """The residual blocks' shifts at some timesteps, of shape (timesteps, channels) each.

        A block adds its projection of the time embedding to its first convolution: that is a bias.
        """
        self.embeddings += 1
        unet = self.unet
        waves = unet.time_proj(timesteps).to(unet.dtype)
        embedded = F.silu(unet.time_embedding(waves))
        return {
            module: module.time_emb_proj(embedded) + module.conv1.bias
            for module in unet.modules()
            if type(module).__name__ == "ResnetBlock2D"
        }

    def context(self, text: Tensor) -> dict[nn.Module, tuple[Tensor, Tensor]]:
        """Keys and values of every cross-attention for the encoded prompts."""
        self.contexts += 1
        return {
            module.attn2: (
                ops.linear(text, _w(module.attn2.to_k)),
                ops.linear(text, _w(module.attn2.to_v)),
            )
            for module in self.unet.modules()
            if type(module).__name__ == "BasicTransformerBlock"
        }

    def __call__(self, x: Tensor, shift: Shift, context: Context) -> Tensor:
        """Predicted noise (B, H, W, 4) for latents x (B, H, W, 4)."""
        return self.store(x, shift, context)[0]

    def store(
        self, x: Tensor, shift: Shift, context: Context, *, twins: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The predicted noise, and the last layer's deep input (B, H, W, channels) to reuse.

        With `twins` the second half of x is the first one again, as in guidance. Up to the first
        look at the prompts both go the same way, so it is gone once.
        """
        self.wholes += 1
        unet = self.unet
        check_sides(x, 2 ** (len(unet.down_blocks) - 1))
        if twins:
            self.twins += 1
            x = x[: len(x) // 2]
        x = ops.convolution(x, _taps(unet.conv_in), unet.conv_in.bias)
        skips = [x]
        for block in unet.down_blocks:
            skips += self._down(block, skips[-1], shift, context)
        x = skips[-1]
        x = self._middle(unet.mid_block, x, shift, context)
        *blocks, last = unet.up_blocks
        for block in blocks:
            x = self._up(block, x, skips, shift, context)
        for layer in range(len(last.resnets) - 1):
            x = self._layer(last, layer, x, skips.pop(), shift, context)
        return self._end(x, skips.pop(), shift, context), x

    def shallow(self, x: Tensor, deep: Tensor, shift: Shift, context: Context) -> Tensor:
        """The predicted noise from `deep`, what `store` gave at an earlier step.

        Source: DeepCache, https://arxiv.org/abs/2312.00858. Exact if `deep` is this step's own.
        """
        x = ops.convolution(x, _taps(self.unet.conv_in), self.unet.conv_in.bias)
        return self._end(deep, x, shift, context)

    def _end(self, deep: Tensor, skip: Tensor, shift: Shift, context: Context) -> Tensor:
        unet = self.unet
        last = unet.up_blocks[-1]
        x = self._layer(last, len(last.resnets) - 1, deep, skip, shift, context)
        x = ops.group_norm(x, unet.conv_norm_out, silu=True)
        return ops.convolution(x, _taps(unet.conv_out), unet.conv_out.bias)

    def _down(self, block: Any, x: Tensor, shift: Shift, context: Context) -> list[Tensor]:
        outputs = []
        for layer in range(len(block.resnets)):
            x = self._layer(block, layer, x, None, shift, context)
            outputs.append(x)
        for sampler in block.downsamplers or ():
            conv = sampler.conv
            outputs.append(ops.downsample_convolution(x, _taps(conv), conv.bias))
        return outputs

    def _middle(self, block: Any, x: Tensor, shift: Shift, context: Context) -> Tensor:
        x = residual_block(block.resnets[0], x, shift, float8=self.float8)
        for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
            x = self._transformer(attention, x, context)
            x = residual_block(resnet, x, shift, float8=self.float8)
        return x

    def _up(
        self, block: Any, x: Tensor, skips: list[Tensor], shift: Shift, context: Context
    ) -> Tensor:
        for layer in range(len(block.resnets)):
            x = self._layer(block, layer, x, skips.pop(), shift, context)
        for sampler in block.upsamplers or ():
            x = ops.upsample_convolution(x, self.upsample[sampler], sampler.conv.bias)
        return x

    def _layer(
        self,
        block: Any,
        layer: int,
        x: Tensor,
        skip: Tensor | None,
        shift: Shift,
        context: Context,
    ) -> Tensor:
        x = residual_block(block.resnets[layer], x, shift, skip, self.float8)
        if getattr(block, "has_cross_attention", False):
            x = self._transformer(block.attentions[layer], x, context)
        return x

    def _transformer(self, module: Any, x: Tensor, context: Context) -> Tensor:
        """Transformer2DModel: its 1 x 1 convolutions are products over tokens."""
        outer = x
        images, height, width, _ = x.shape
        float8, into = self.float8, module.proj_in
        x = ops.group_norm(x, module.norm, factor=float8.factors.get(module.norm))
        x = ops.linear(x, float8.weight(into, _flat(into)), into.bias)
        x = x.reshape(images, height * width, -1)
        *blocks, last = module.transformer_blocks
        for block in blocks:
            x, hidden = self._transformer_block(block, x, context)
            x = ops.linear(hidden, _w(block.ff.net[2]), block.ff.net[2].bias, residual=x)
        x, hidden = self._transformer_block(last, x, context)
        weight, bias = self.merged[module]
        outer = _as_many(outer, x)
        out = ops.linear(
            x, weight, bias, x2=hidden, residual=outer.reshape(x.shape[0], x.shape[1], -1)
        )
        return out.reshape(outer.shape)

    def _transformer_block(self, block: Any, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """A BasicTransformerBlock up to its feed-forward's hidden values, which are left to add."""
        one, other = block.attn1, block.attn2
        joined = ops.linear(self._normed(x, block.norm1), self._weight(one, self.joined[one]))
        q, k, v = joined.chunk(3, dim=-1)
        attended = ops.attention(q, k, v, one.heads)
        x = ops.linear(attended, _w(one.to_out[0]), one.to_out[0].bias, residual=x)
        query = ops.linear(self._normed(x, block.norm2), self._weight(other.to_q))
        keys, values = context[other]
        x = _as_many(x, keys)
        attended = ops.attention(query, keys, values, other.heads)
        x = ops.linear(attended, _w(other.to_out[0]), other.to_out[0].bias, residual=x)
        first = block.ff.net[0].proj
        return x, ops.geglu(self._normed(x, block.norm3), self._weight(first), first.bias)

    def _normed(self, x: Tensor, norm: Any) -> Tensor:
        """LayerNorm, in float8 if the product after it is."""
        return ops.layer_norm(x, norm, self.float8.factors.get(norm))

    def _weight(self, module: Any, weight: Tensor | None = None) -> Tensor | Rounded:
        """In float8 if the module's product is; else the one given, or the module's own."""
        return self.float8.weight(module, module.weight if weight is None else weight)


def residual_block(
    module: Any,
    x: Tensor,
    shift: Shift | None = None,
    skip: Tensor | None = None,
    float8: Float8 = NO_FLOAT8,
) -> Tensor:
    """ResnetBlock2D of x continued by `skip`, which is never joined to it in memory."""
    bias = module.conv1.bias if shift is None else shift[module]
    skip = None if skip is None else _as_many(skip, x)
    one, other = module.conv1, module.conv2
    factors = float8.factors.get(module.norm1), float8.factors.get(module.norm2)
    hidden = ops.group_norm(x, module.norm1, silu=True, x2=skip, factor=factors[0])
    hidden = ops.convolution(hidden, float8.weight(one, _taps(one)), None)
    hidden = ops.group_norm(hidden, module.norm2, silu=True, shift=bias, factor=factors[1])
    outer = x
    if module.conv_shortcut is not None:
        short = module.conv_shortcut
        outer = ops.linear(x, _flat(short), short.bias, x2=skip)
    return ops.convolution(hidden, float8.weight(other, _taps(other)), other.bias, residual=outer)


def _as_many(x: Tensor, like: Tensor) -> Tensor:
    """x (images, ...) as often as `like` has its images; x itself where that is once."""
    times = len(like) // len(x)
    return x if times == 1 else torch.cat([x] * times)


def check_sides(x: Tensor, multiple: int) -> None:
    """Raise SdoptError for latents (B, H, W, C) that are not halved and doubled exactly."""
    sides = tuple(x.shape[1:3])
    if any(side % multiple for side in sides):
        raise SdoptError(
            f"the engine computes latents whose sides are multiples of {multiple} "
            f"({8 * multiple} px of the image), these are {sides}; use another size, or a level "
            "without the engine, such as 'final'"
        )


def check_supported(config: Mapping[str, Any]) -> None:
    """Raise SdoptError naming the first option or block that the engine does not compute."""
    for block in (*config["down_block_types"], *config["up_block_types"]):
        if block not in BLOCKS:
            raise SdoptError(
                f"the engine computes UNets of {', '.join(BLOCKS)}, this one has a {block}; use a "
                "level without the engine, such as 'final'"
            )
    for name, value in SUPPORTED.items():
        if config.get(name, value) != value:
            raise SdoptError(
                f"the engine computes UNets with {name}={value!r}, this one has "
                f"{config[name]!r}; use a level without the engine, such as 'final'"
            )


def _w(projection: Any) -> Tensor:
    weight: Tensor = projection.weight
    return weight


def _taps(conv: Any) -> Tensor:
    """A convolution's weight as (N, taps, taps, C); no copy if it is channels-last."""
    weight: Tensor = conv.weight.permute(0, 2, 3, 1)
    return weight.contiguous()


def _flat(conv: Any) -> Tensor:
    """A 1 x 1 convolution's weight as a matrix (N, C)."""
    weight: Tensor = conv.weight
    return weight.flatten(1)
