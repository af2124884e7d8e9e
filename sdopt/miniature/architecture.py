"""The parts of the miniature, and the plain diffusers folder they are written to."""

import json
import shutil
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.schedulers import PNDMScheduler
from transformers import CLIPTextConfig, CLIPTextModel

from sdopt.miniature import SIZE_PX
from sdopt.miniature.tokenizer import (
    END,
    MAX_TOKENS,
    START,
    load_tokenizer,
    token_ids,
    vocabulary_size,
    write_tokenizer,
)

_TEXT_WIDTH = 128

SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
"""Stable Diffusion 1.5's own scheduler_config.json, key by key.

It is written as it stands: a config saved by diffusers would spell out PNDM's other defaults,
and another scheduler made from it would take those for choices.
"""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything that is trained; see `build_parts`."""

    vae: AutoencoderKL
    tiny_vae: AutoencoderTiny
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel


def build_parts(seed: int) -> Parts:
    """All parts with random weights, float32 on the CPU."""
    torch.manual_seed(seed)
    return Parts(
        vae=_build_vae(), tiny_vae=_build_tiny_vae(), text_encoder=_build_text(), unet=_build_unet()
    )


def load_parts(folder: Path) -> Parts:
    """The parts in a folder that `save_folder` wrote, float32 on the CPU."""
    return Parts(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        tiny_vae=AutoencoderTiny.from_pretrained(folder / "tiny_vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
    )


def _build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 96, 96),
        layers_per_block=1,
        latent_channels=4,
        # 4 channels a group, as in SD 1.5's. In groups of 2 a flat image loses its colours.
        norm_num_groups=8,
        sample_size=SIZE_PX,
    )


def _build_tiny_vae() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(16, 16, 16, 16),
        decoder_block_out_channels=(32, 32, 32, 32),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        scaling_factor=1.0,
    )


def _build_text() -> CLIPTextModel:
    ids = token_ids()
    config = CLIPTextConfig(
        vocab_size=vocabulary_size(),
        hidden_size=_TEXT_WIDTH,
        intermediate_size=4 * _TEXT_WIDTH,
        projection_dim=_TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="quick_gelu",
        bos_token_id=ids[START],
        eos_token_id=ids[END],
        pad_token_id=ids[END],
    )
    return CLIPTextModel(config)


def _build_unet() -> UNet2DConditionModel:
    attention_down = ("CrossAttnDownBlock2D",) * 3
    attention_up = ("CrossAttnUpBlock2D",) * 3
    return UNet2DConditionModel(
        sample_size=SIZE_PX // 8,
        block_out_channels=(64, 96, 128, 128),
        down_block_types=(*attention_down, "DownBlock2D"),
        up_block_types=("UpBlock2D", *attention_up),
        layers_per_block=1,
        cross_attention_dim=_TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def save_folder(parts: Parts, folder: Path) -> None:
    """Writes a float16 pipeline folder with `tiny_vae/` beside it; an old `folder` is replaced.

    The new folder is written whole under a temporary name first. `parts` keep their dtype.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    _write_folder(parts, temporary)
    temporary.chmod(0o755)
    if folder.exists():
        old = temporary.with_name(temporary.name + "-old")
        folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old)
    else:
        temporary.rename(folder)


def _write_folder(parts: Parts, folder: Path) -> None:
    write_tokenizer(folder / "tokenizer")
    pipeline = StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=load_tokenizer(folder / "tokenizer"),
        unet=parts.unet,
        scheduler=PNDMScheduler.from_config(SCHEDULER_CONFIG),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for name in ("vae", "tiny_vae", "text_encoder", "unet"):
        _save_half(getattr(parts, name), folder / name)
    pipeline.save_config(folder)
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER_CONFIG)


def _save_half(module: torch.nn.Module, folder: Path) -> None:
    """Float16 weights under a config that names float32, so that a plain load mixes no dtypes."""
    deepcopy(module).half().save_pretrained(folder)  # type: ignore[operator]
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if "dtype" in config:
        config["dtype"] = "float32"
    if config.get("_class_name") == "AutoencoderTiny":
        # AutoencoderTiny writes this key and warns when it reads it; it derives it anyway.
        del config["block_out_channels"]
    _write_json(path, config)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
