"""LoRA for the pipelines of tests, in the format that diffusers saves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "proj_in", "proj_out", "conv_in", "conv_out")
CONVOLUTIONS += ("upsamplers.0.conv", "downsamplers.0.conv")
PRODUCTS = ("ff.net.0.proj", "ff.net.2", "time_emb_proj", "linear_1", "linear_2", "fc1", "fc2")


def lora(
    pipeline: Any,
    targets: Iterable[str] = ATTENTION,
    *,
    rank: int = 2,
    seed: int = 0,
    size: float = 0.3,
) -> dict[str, Tensor]:
    """Random matrices for every layer of UNet and text encoder whose name ends like a target."""
    random = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for part in ("unet", "text_encoder"):
        for name, layer in getattr(pipeline, part).named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d) or not name.endswith(tuple(targets)):
                continue
            rows, columns, *kernel = layer.weight.shape
            ends = [1] * len(kernel)
            down = torch.randn(rank, columns, *kernel, generator=random) / columns**0.5
            up = torch.randn(rows, rank, *ends, generator=random) * size
            found[f"{part}.{name}.lora_A.weight"] = down
            found[f"{part}.{name}.lora_B.weight"] = up
    return found
