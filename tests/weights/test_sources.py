"""A source is the miniature or a diffusers folder; anything else is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from sdopt import miniature as embedded
from sdopt.errors import BrokenFileError, SourceError, UnknownNameError
from sdopt.weights.sources import resolve

PARTS = ("unet", "vae", "text_encoder", "tokenizer")


def diffusers_folder(folder: Path, *, without: str = "", **configs: Any) -> Path:
    """The few files of a diffusers folder that a source is read from."""
    write_json(folder / "model_index.json", {part: ["a", "B"] for part in PARTS if part != without})
    write_json(folder / "unet" / "config.json", configs.get("unet", {"sample_size": 64}))
    vae = {"block_out_channels": [128, 256, 512, 512]}
    write_json(folder / "vae" / "config.json", configs.get("vae", vae))
    return folder


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize("name", [None, "", "auto", "embedded"])
def test_the_miniature_is_the_source_by_default_and_by_name(name: str | None) -> None:
    source = resolve(name)
    assert (source.name, source.folder) == ("embedded", embedded.MODEL_DIR)
    assert (source.size_px, source.guidance_scale) == (128, embedded.GUIDANCE_SCALE)
    assert source.is_embedded


def test_a_source_says_why_it_was_chosen() -> None:
    assert "auto" in resolve("auto").why
    assert "by name" in resolve("embedded").why


def test_a_folder_is_a_source_of_stable_diffusions_size_and_guidance(tmp_path: Path) -> None:
    folder = diffusers_folder(tmp_path / "my model (v2)")
    source = resolve(str(folder))
    assert (source.name, source.folder) == ("my-model-v2-", folder)
    assert (source.size_px, source.guidance_scale) == (512, 7.5)
    assert str(folder) in source.why


def test_a_folder_generates_any_prompt_and_has_no_truth(tmp_path: Path) -> None:
    source = resolve(str(diffusers_folder(tmp_path)))
    source.check_prompt("an astronaut riding a horse")
    assert not source.is_embedded


def test_a_relative_folder_is_named_by_its_real_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = diffusers_folder(tmp_path / "my-model")
    monkeypatch.chdir(folder)
    source = resolve(".")
    assert (source.name, source.folder) == ("my-model", folder)


def test_what_is_no_name_is_refused_by_value() -> None:
    with pytest.raises(UnknownNameError, match="unknown source 3; choose from"):
        resolve(3)  # type: ignore[arg-type]


def test_an_unknown_source_is_named_with_the_choices_and_the_next_step() -> None:
    with pytest.raises(UnknownNameError) as caught:
        resolve("embeded")
    assert str(caught.value) == (
        "unknown source 'embeded' (did you mean 'embedded'?); choose from: auto, embedded, "
        "sd15-random; or a diffusers folder, a .safetensors file, or a repository of the Hugging "
        "Face hub such as stable-diffusion-v1-5/stable-diffusion-v1-5"
    )


def test_a_file_of_another_kind_is_no_source(tmp_path: Path) -> None:
    weights = tmp_path / "model.ckpt"
    weights.write_bytes(b"")
    with pytest.raises(UnknownNameError, match=r"a \.safetensors file"):
        resolve(str(weights))


def test_a_file_beside_a_diffusers_folders_configs_takes_them(tmp_path: Path) -> None:
    folder = diffusers_folder(tmp_path / "models")
    weights = folder / "my model.safetensors"
    save_file({"a": np.zeros(1)}, weights)
    source = resolve(str(weights))
    assert (source.name, source.kind) == ("my-model", "checkpoint")
    assert (source.checkpoint, source.folder) == (weights, folder)
    assert (source.size_px, source.guidance_scale, source.location) == (512, 7.5, weights)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"there is no file .*none\.safetensors"):
        resolve(str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"\xff" * 1000], ids=["empty", "short", "garbage"]
)
def test_a_file_that_holds_no_weights_is_named(content: bytes, tmp_path: Path) -> None:
    path = diffusers_folder(tmp_path) / "v1.safetensors"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"v1\.safetensors is not a whole safetensors file"):
        resolve(str(path))


def test_a_missing_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in (str(tmp_path / "none"), "./none", "../none"):
        with pytest.raises(SourceError, match=f"there is no folder {name}; a source is auto, "):
            resolve(name)


def test_random_weights_are_those_of_stable_diffusion_by_name() -> None:
    source = resolve("sd15-random")
    assert (source.name, source.kind, source.folder) == ("sd15-random", "random", None)
    assert (source.size_px, source.guidance_scale, source.is_embedded) == (512, 7.5, False)


def test_auto_takes_random_weights_on_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants
    import torch

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    source = resolve("auto")
    assert source.name == "sd15-random"
    assert "no real weights in the local cache" in source.why


def test_a_folder_without_an_index_is_no_diffusers_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        resolve(str(tmp_path))
    message = str(caught.value)
    assert f"{tmp_path} is not a diffusers folder" in message
    assert "model_index.json" in message
    assert "save_pretrained" in message


@pytest.mark.parametrize("part", PARTS)
def test_an_index_without_a_part_is_named(part: str, tmp_path: Path) -> None:
    folder = diffusers_folder(tmp_path, without=part)
    with pytest.raises(SourceError) as caught:
        resolve(str(folder))
    assert f"{folder / 'model_index.json'} names no {part}" in str(caught.value)


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "vae/config.json"])
@pytest.mark.parametrize("content", [b"", b'{"unet": ', b"[]", b"\xff\xfe"])
def test_a_broken_config_is_named_and_left_as_it_is(
    file: str, content: bytes, tmp_path: Path
) -> None:
    path = diffusers_folder(tmp_path) / file
    path.write_bytes(content)
    with pytest.raises(BrokenFileError, match="save the model again") as caught:
        resolve(str(tmp_path))
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("file", ["unet/config.json", "vae/config.json"])
def test_a_missing_config_is_named(file: str, tmp_path: Path) -> None:
    path = diffusers_folder(tmp_path) / file
    path.unlink()
    with pytest.raises(BrokenFileError, match="save the model again") as caught:
        resolve(str(tmp_path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "configs",
    [
        {"unet": {}},
        {"unet": {"sample_size": [64, 32]}},
        {"vae": {}},
        {"vae": {"block_out_channels": 4}},
    ],
)
def test_a_folder_that_gives_no_image_size_is_refused(
    configs: dict[str, Any], tmp_path: Path
) -> None:
    folder = diffusers_folder(tmp_path, **configs)
    with pytest.raises(SourceError, match="gives no image size") as caught:
        resolve(str(folder))
    assert str(folder) in str(caught.value)


def test_the_tiny_vae_lies_beside_the_other_parts(tmp_path: Path) -> None:
    source = resolve(str(diffusers_folder(tmp_path)))
    write_json(tmp_path / "tiny_vae" / "config.json", {})
    assert source.tiny_vae_folder == tmp_path / "tiny_vae"


def test_a_source_without_tiny_vae_says_where_it_belongs(tmp_path: Path) -> None:
    source = resolve(str(diffusers_folder(tmp_path / "my-model")))
    with pytest.raises(SourceError) as caught:
        _ = source.tiny_vae_folder
    message = str(caught.value)
    assert "source 'my-model' has no Tiny VAE" in message
    assert str(tmp_path / "my-model" / "tiny_vae") in message
    assert "AutoencoderTiny" in message


def test_the_miniature_knows_the_words_of_its_scenes() -> None:
    resolve("embedded").check_prompt("a large striped red star at the top left")


def test_a_word_the_miniature_has_never_seen_is_named_with_the_choices() -> None:
    with pytest.raises(UnknownNameError) as caught:
        resolve("embedded").check_prompt("a large striped red starr at the top left")
    message = str(caught.value)
    assert "unknown prompt word 'starr' (did you mean 'star'?)" in message
    assert "circle" in message
