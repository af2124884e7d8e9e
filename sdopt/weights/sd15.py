"""Stable Diffusion 1.5's exact architecture with seeded random weights, made on the device.

Times and memory are those of the real model; images prove only that numerics did not drift.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdopt.miniature.architecture import SCHEDULER_CONFIG
from sdopt.miniature.tokenizer import END, START, load_tokenizer, write_tokenizer

SEED = 0
MAX_TOKENS = 77
_CONTRAST = 8.0
TEXT_TOKENS = 49408
START_ID, END_ID = TEXT_TOKENS - 2, TEXT_TOKENS - 1

UNET: dict[str, Any] = {
    "sample_size": 64,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
"""unet/config.json of stable-diffusion-v1-5; what is not here has diffusers' default there too."""

VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
"""vae/config.json of stable-diffusion-v1-5."""

TEXT: dict[str, Any] = {
    "vocab_size": TEXT_TOKENS,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": MAX_TOKENS,
    "hidden_act": "quick_gelu",
    "bos_token_id": START_ID,
    "eos_token_id": END_ID,
    "pad_token_id": END_ID,
}
"""text_encoder/config.json of stable-diffusion-v1-5 (CLIP ViT-L/14)."""

TINY_VAE: dict[str, Any] = {"scaling_factor": 1.0}
"""config.json of madebyollin/taesd, which diffusers' defaults were made for."""

WORDS = (
    "a",
    "an",
    "and",
    "at",
    "by",
    "in",
    "of",
    "on",
    "the",
    "with",
    *("above", "astronaut", "blurry", "cat", "castle", "close", "detailed", "foggy", "horse"),
    *("library", "lights", "low", "moon", "neon", "night", "oil", "painting", "people"),
    *("photograph", "portrait", "quality", "rainy", "reflections", "riding", "signs", "street"),
    *("sunrise", "tabby", "text", "tokyo", "up", "valley", "watermark"),
)
"""The words that are one token each, as in CLIP; others are spelt in LETTERS."""
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.-'"


def random_parts(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The parts of a StableDiffusionPipeline; the same weights at each call on the same device."""
    return {
        "vae": _seeded(lambda: AutoencoderKL(**VAE), device, dtype),
        "unet": _seeded(lambda: UNet2DConditionModel(**UNET), device, dtype),
        "text_encoder": _seeded(lambda: CLIPTextModel(CLIPTextConfig(**TEXT)), device, dtype),
        "tokenizer": tokenizer(),
        "scheduler": PNDMScheduler.from_config(SCHEDULER_CONFIG),
    }


def random_tiny_vae(device: torch.device, dtype: torch.dtype) -> AutoencoderTiny:
    """TAESD's architecture with random weights, the last layer's such that the range is used."""
    tiny = _seeded(lambda: AutoencoderTiny(**TINY_VAE), device, dtype)
    # Its output is an image from 0 to 1: around 0, half of it would be cut off.
    last = tiny.decoder.layers[-1]
    last.weight.mul_(_CONTRAST)
    last.bias.fill_(0.5)
    return tiny


def _seeded(make: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    """The module, made on the device by its classes' own initialization."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(SEED)
        module = make()
    # Not by diffusers' own `to`, which warns of parts to be kept in float32 and then names none.
    return torch.nn.Module.to(module, dtype).eval().requires_grad_(False)


def tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair encoding over few words, padded to 77 tokens, with CLIP's end marks."""
    with tempfile.TemporaryDirectory() as folder:
        marks = {START: START_ID, END: END_ID}
        write_tokenizer(Path(folder), WORDS, length=MAX_TOKENS, letters=LETTERS, marks=marks)
        return load_tokenizer(Path(folder))
