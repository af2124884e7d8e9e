"""The shipped folder is a plain diffusers pipeline with one token per word."""

import diffusers
import numpy as np
import pytest
import torch

from sdopt.miniature import GUIDANCE_SCALE, MODEL_DIR, SIZE_PX
from sdopt.miniature.architecture import SCHEDULER_CONFIG
from sdopt.miniature.scenes import VOCABULARY, held_out_scenes
from sdopt.miniature.tokenizer import (
    END,
    MAX_TOKENS,
    START,
    learn_merges,
    load_tokenizer,
    token_ids,
    vocabulary_size,
    write_tokenizer,
)

MIB = 2**20


@pytest.fixture(scope="module")
def pipeline():
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(MODEL_DIR)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_folder_is_small():
    sizes = [path.stat().st_size for path in MODEL_DIR.rglob("*") if path.is_file()]
    assert sum(sizes) <= 24 * MIB
    assert max(sizes) < 16 * MIB


def test_weights_are_half_precision():
    from safetensors import safe_open

    for path in MODEL_DIR.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118


def test_stock_pipeline_draws(pipeline):
    caption = held_out_scenes(1)[0].caption()
    image = pipeline(
        caption,
        num_inference_steps=2,
        guidance_scale=GUIDANCE_SCALE,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]
    assert image.shape == (SIZE_PX, SIZE_PX, 3)
    assert np.isfinite(image).all()
    assert image.std() > 0.01


def test_parts_are_those_of_stable_diffusion(pipeline):
    assert type(pipeline.scheduler).__name__ == SCHEDULER_CONFIG["_class_name"]
    assert pipeline.safety_checker is None
    assert pipeline.vae_scale_factor == 8
    assert pipeline.vae.config.latent_channels == 4
    assert pipeline.unet.config.sample_size * 8 == SIZE_PX
    blocks = pipeline.unet.config.down_block_types
    assert list(blocks) == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {
        torch.float32
    }


def test_tiny_vae_is_a_drop_in(pipeline):
    tiny = diffusers.AutoencoderTiny.from_pretrained(MODEL_DIR / "tiny_vae")
    assert tiny.config.scaling_factor == 1.0
    latents = torch.zeros(1, 4, SIZE_PX // 8, SIZE_PX // 8)
    with torch.no_grad():
        assert tiny.decode(latents).sample.shape == (1, 3, SIZE_PX, SIZE_PX)


def test_one_token_per_word():
    tokenizer = load_tokenizer(MODEL_DIR / "tokenizer")
    ids = token_ids()
    for word in VOCABULARY:
        assert tokenizer(word).input_ids == [ids[START], ids[word], ids[END]]
    assert tokenizer.model_max_length == MAX_TOKENS
    assert len(tokenizer) == vocabulary_size()
    assert max(ids.values()) == vocabulary_size() - 1


def test_longest_caption_fits():
    tokenizer = load_tokenizer(MODEL_DIR / "tokenizer")
    longest = max((scene.caption() for scene in held_out_scenes(200)), key=lambda c: len(c.split()))
    ids = tokenizer(longest, padding="max_length").input_ids
    assert len(ids) == MAX_TOKENS
    assert ids[-1] == token_ids()[END]
    assert ids[1 : 1 + len(longest.split())] == [token_ids()[word] for word in longest.split()]


def test_shipped_tokenizer_is_what_the_code_writes(tmp_path):
    write_tokenizer(tmp_path)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (MODEL_DIR / "tokenizer" / name).read_text() == (tmp_path / name).read_text()


def test_merges_build_words_that_share_parts():
    merges = learn_merges(["top", "stop", "to", "green", "great"])
    assert ("t", "o") in merges
    assert len(merges) == len(set(merges))
