"""Weights come from safetensors alone: a pickle is refused by name at every door, and never run."""

from __future__ import annotations

import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora import lora
from safetensors.torch import load_file

from sdopt.errors import SdoptError, SourceError
from sdopt.levels import BASELINE
from sdopt.pipelines.loading import load_tiny_vae
from sdopt.pipelines.no_pickles import without_pickles
from sdopt.pipelines.pipeline import LevelPipeline, build, load_pipeline
from sdopt.weights.sources import Source, resolve

CPU = torch.device("cpu")
PARTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "tiny_vae": "diffusion_pytorch_model",
}


class Harm:
    """What a pickle can do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def harm(tmp_path: Path) -> Path:
    return tmp_path / "harm"


@pytest.fixture(scope="module")
def pipeline(micro_source: Source) -> LevelPipeline:
    return build(micro_source, BASELINE, CPU)


def pickled(folder: Path, part: str) -> Path:
    """The part's very weights as a pickle instead: nothing but its format is wrong with it."""
    (weights,) = (folder / part).glob("*.safetensors")
    name = "pytorch_model.bin" if part == "text_encoder" else f"{PARTS[part]}.bin"
    torch.save(load_file(weights), folder / part / name)
    weights.unlink()
    return folder / part / name


@pytest.mark.parametrize("part", PARTS)
def test_a_folder_with_one_pickled_part_is_refused(part: str, micro: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(micro, folder)
    pickled(folder, part)

    def load() -> object:
        if part == "tiny_vae":
            return load_tiny_vae(resolve(str(folder)), CPU, torch.float32)
        return load_pipeline("baseline", source=str(folder), device="cpu")

    with pytest.raises(SourceError, match="cannot be loaded"):
        load()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_from_pretrained_of_the_class_reads_no_pickle(
    part: str, micro: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(micro, folder)
    file = pickled(folder, part)
    with pytest.raises(SourceError, match=f"{file.name} is a pickle, which can run any code"):
        LevelPipeline.from_pretrained(folder, safety_checker=None)


@pytest.mark.parametrize("name", ["v1.ckpt", "v1.bin", "v1.pt"])
def test_a_checkpoint_that_is_a_pickle_is_refused(name: str, tmp_path: Path, harm: Path) -> None:
    file = tmp_path / name
    file.write_bytes(pickle.dumps(Harm(harm)))
    with pytest.raises(SdoptError):
        resolve(str(file))
    with pytest.raises(SourceError, match="is a pickle"):
        LevelPipeline.from_single_file(str(file))
    assert not harm.exists()


def test_a_pickle_that_calls_itself_safetensors_is_refused(tmp_path: Path, harm: Path) -> None:
    file = tmp_path / "v1.safetensors"
    file.write_bytes(pickle.dumps(Harm(harm)))
    with pytest.raises(SourceError, match="is not a whole safetensors file"):
        resolve(str(file))
    assert not harm.exists()


def as_lora(pipeline: LevelPipeline) -> Any:
    return {name: value.contiguous() for name, value in lora(pipeline).items()}


def as_words(pipeline: LevelPipeline) -> Any:
    return {"<mine>": torch.ones(pipeline.text_encoder.config.hidden_size)}


ADDED: dict[str, tuple[Any, str, Callable[[LevelPipeline, Path], Any]]] = {
    "a LoRA's file": (as_lora, "x.bin", lambda to, at: to.load_lora_weights(str(at))),
    "a LoRA in a folder": (
        as_lora,
        "x.bin",
        lambda to, at: to.load_lora_weights(str(at.parent), weight_name=at.name),
    ),
    "a LoRA by its usual name": (
        as_lora,
        "pytorch_lora_weights.bin",
        lambda to, at: to.load_lora_weights(str(at.parent)),
    ),
    "words that were learnt": (
        as_words,
        "x.pt",
        lambda to, at: to.load_textual_inversion(str(at)),
    ),
    "words in a folder": (
        as_words,
        "learned_embeds.bin",
        lambda to, at: to.load_textual_inversion(str(at.parent)),
    ),
    "an image adapter": (
        lambda _: {"image_proj": {}, "ip_adapter": {}},
        "x.bin",
        lambda to, at: to.load_ip_adapter(
            str(at.parent), subfolder="", weight_name=at.name, image_encoder_folder=None
        ),
    ),
}


@pytest.mark.parametrize("what", ADDED)
def test_what_is_added_to_a_pipeline_is_no_pickle(
    what: str, pipeline: LevelPipeline, tmp_path: Path
) -> None:
    content, name, load = ADDED[what]
    file = tmp_path / name
    torch.save(content(pipeline), file)
    with pytest.raises(SourceError, match=f"{name} is a pickle, which can run any code"):
        load(pipeline, file)


def test_what_diffusers_itself_would_read_there(tmp_path: Path, pipeline: LevelPipeline) -> None:
    """The files of the tests above are sound: without the refusal a LoRA would be loaded."""
    from diffusers import StableDiffusionPipeline

    file = tmp_path / "x.bin"
    torch.save(as_lora(pipeline), file)
    assert len(StableDiffusionPipeline.lora_state_dict(str(file))[0]) > 0


def test_only_the_thread_that_reads_weights_is_kept_from_pickles(tmp_path: Path) -> None:
    file, found = tmp_path / "own.pt", []
    torch.save(torch.ones(2), file)
    original = torch.load
    with without_pickles():
        thread = threading.Thread(target=lambda: found.append(torch.load(file)))
        thread.start()
        thread.join()
        with without_pickles(), pytest.raises(SourceError, match="is a pickle"):
            torch.load(file)
        with pytest.raises(SourceError, match="is a pickle"):
            torch.load(file)
    assert len(found) == 1
    assert torch.load is original
    assert torch.load(file).tolist() == [1.0, 1.0]
