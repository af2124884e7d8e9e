"""Weights of a diffusers pipeline in one file, under the names of the original release of SD 1."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE = {
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def save_checkpoint(pipeline: Any, path: Path) -> None:
    """Write UNet, VAE and text encoder of a StableDiffusionPipeline as one .safetensors file."""
    layers = pipeline.unet.config["layers_per_block"]
    weights = {
        f"model.diffusion_model.{unet_name(name, layers)}": value
        for name, value in pipeline.unet.state_dict().items()
    }
    for name, value in pipeline.vae.state_dict().items():
        weights[f"first_stage_model.{vae_name(name)}"] = as_convolution(name, value)
    for name, value in pipeline.text_encoder.state_dict().items():
        inner = name.removeprefix("text_model.")
        weights[f"cond_stage_model.transformer.text_model.{inner}"] = value
    save_file({name: value.contiguous().clone() for name, value in weights.items()}, path)


def unet_name(name: str, layers: int) -> str:
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return inside_resnet(name.replace(ours, theirs, 1))
    found = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", name)
    assert found is not None, name
    side, block, kind, number, rest = found.groups()
    first = (layers + 1) * int(block)
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{first + layers + 1}.0.op.{rest.removeprefix('conv.')}"
        return inside_resnet(f"input_blocks.{first + int(number) + 1}.{part(kind)}.{rest}")
    if kind == "upsamplers":
        # After the attention, where the block has one; only the first, deepest one has none.
        return f"output_blocks.{first + layers}.{1 if block == '0' else 2}.{rest}"
    return inside_resnet(f"output_blocks.{first + int(number)}.{part(kind)}.{rest}")


def part(kind: str) -> int:
    return {"resnets": 0, "attentions": 1}[kind]


def inside_resnet(name: str) -> str:
    if "transformer_blocks" in name:
        return name
    for ours, theirs in RESNET.items():
        name = re.sub(rf"(blocks?\.\d+(?:\.\d)?)\.{ours}\.", rf"\1.{theirs}.", name)
    return name


def vae_name(name: str) -> str:
    for ours, theirs in VAE.items():
        name = re.sub(rf"(^|\.){re.escape(ours)}\.", rf"\1{theirs}.", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(
        r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", name
    )
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)


def as_convolution(name: str, value: Tensor) -> Tensor:
    """The original VAE's attention has convolutions of 1 x 1 for linear layers."""
    is_linear = "attentions" in name and name.endswith("weight") and value.dim() == 2
    return value[:, :, None, None] if is_linear else value
