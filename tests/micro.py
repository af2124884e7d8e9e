"""A source with SD 1.5's block types and next to no weights, so that an image takes moments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from sdopt.bench.measure import FirstCall, Observation, Work, first_call, observe, work_of
from sdopt.levels import Level
from sdopt.miniature.architecture import Parts, save_folder
from sdopt.miniature.tokenizer import END, MAX_TOKENS, START, token_ids, vocabulary_size
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.workload import Request
from sdopt.weights.sources import Source

WIDTH = 8
TEXT_WIDTH = 16
LATENT_PX = 8
SIZE_PX = 8 * LATENT_PX


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One level of the ladder: its pipeline, warm, and what was measured of it."""

    level: Level
    pipeline: LevelPipeline
    first: FirstCall
    seen: Observation
    work: Work


def climb(source: Source, level: Level, request: Request) -> Rung:
    """Build the level, make its first image and watch the second."""
    pipeline = build(source, level)
    first = first_call(pipeline, request)
    seen = observe(pipeline, request)
    return Rung(
        level=level, pipeline=pipeline, first=first, seen=seen, work=work_of(pipeline, seen)
    )


def save_micro_source(folder: Path) -> None:
    """Write the diffusers folder; the same weights each time, without touching torch's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = Parts(vae=_vae(), tiny_vae=_tiny_vae(), text_encoder=_text_encoder(), unet=_unet())
    save_folder(parts, folder)


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=LATENT_PX,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(WIDTH,) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,  # as in SD 1.5's config this is the number of heads
        cross_attention_dim=TEXT_WIDTH,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(WIDTH,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=SIZE_PX,
    )


def _tiny_vae() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 4,
        decoder_block_out_channels=(WIDTH,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )


def _text_encoder() -> CLIPTextModel:
    ids = token_ids()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary_size(),
            hidden_size=TEXT_WIDTH,
            intermediate_size=TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=ids[START],
            eos_token_id=ids[END],
            pad_token_id=ids[END],
        )
    )
