"""Where the weights come from: the shipped miniature or a diffusers folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdopt import embedded
from sdopt.embedded import scenes
from sdopt.errors import BrokenFileError, SourceError, UnknownNameError

SD15_GUIDANCE_SCALE = 7.5
NAMED_SOURCES = ("auto", "embedded")
TINY_VAE_FOLDER = "tiny_vae"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A set of SD 1.5-shaped weights and what its pictures are made with.

    `folder` has the plain diffusers layout, with a `tiny_vae/` beside the pipeline's own parts.
    `why` says how this source was chosen; every run prints it.
    """

    name: str
    why: str
    folder: Path
    size_px: int
    guidance_scale: float
    check_prompt: Callable[[str], None] = lambda text: None

    @property
    def is_embedded(self) -> bool:
        """Whether this is the shipped miniature, whose prompts have a true picture."""
        return self.folder == embedded.MODEL_DIR

    @property
    def tiny_vae_folder(self) -> Path:
        """The folder of the Tiny VAE. Raises SourceError if this source has none."""
        folder = self.folder / TINY_VAE_FOLDER
        if not (folder / "config.json").is_file():
            raise SourceError(
                f"source {self.name!r} has no Tiny VAE: {folder} is missing; "
                "save an AutoencoderTiny there, or pick a level with the full VAE"
            )
        return folder


def resolve(name: str | None = None) -> Source:
    """The source of that name: 'auto', 'embedded' or the path of a diffusers folder."""
    name = name or "auto"
    if name == "auto":
        return _embedded("auto: the only source that needs no download")
    if name == "embedded":
        return _embedded("asked for by name")
    if Path(name).is_dir():
        return _from_folder(Path(name))
    raise UnknownNameError(
        "source", name, NAMED_SOURCES, "or the path of an existing diffusers folder"
    )


def _embedded(why: str) -> Source:
    return Source(
        name="embedded",
        why=why,
        folder=embedded.MODEL_DIR,
        size_px=embedded.SIZE_PX,
        guidance_scale=embedded.GUIDANCE_SCALE,
        check_prompt=check_embedded_prompt,
    )


def check_embedded_prompt(text: str) -> None:
    """Raise UnknownNameError for the first word that the embedded model has never seen."""
    unknown = scenes.unknown_words(text)
    if unknown:
        raise UnknownNameError("prompt word", unknown[0], scenes.VOCABULARY)


def _from_folder(folder: Path) -> Source:
    index = folder / "model_index.json"
    if not index.is_file():
        raise SourceError(
            f"{folder} is not a diffusers folder: it has no model_index.json; "
            "save one with StableDiffusionPipeline.save_pretrained"
        )
    parts = _read_config(index)
    missing = [p for p in ("unet", "vae", "text_encoder", "tokenizer") if p not in parts]
    if missing:
        raise SourceError(f"{index} names no {', '.join(missing)}: not a Stable Diffusion 1.5")
    latent_px = _read_config(folder / "unet" / "config.json").get("sample_size")
    blocks = _read_config(folder / "vae" / "config.json").get("block_out_channels")
    if not isinstance(latent_px, int) or not isinstance(blocks, list):
        raise SourceError(f"{folder}: unet/config.json or vae/config.json gives no picture size")
    return Source(
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name),
        why=f"the folder {folder}",
        folder=folder.resolve(),
        size_px=latent_px * 2 ** (len(blocks) - 1),
        guidance_scale=SD15_GUIDANCE_SCALE,
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BrokenFileError(f"{path} cannot be read: {error}; save the model again") from error
    if not isinstance(config, dict):
        raise BrokenFileError(f"{path} holds no JSON object; save the model again")
    return config
