"""Where the weights come from: shipped, random, a folder, a file or the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdopt import miniature as embedded
from sdopt.errors import BrokenFileError, SourceError, UnknownNameError
from sdopt.miniature import scenes
from sdopt.util.files import cause, may_be_path
from sdopt.util.text import shown
from sdopt.weights import hub

SD15_GUIDANCE_SCALE = 7.5
SD15_SIZE_PX = 512
NAMED_SOURCES = ("auto", "embedded", "sd15-random")
TINY_VAE_FOLDER = "tiny_vae"
OTHER_SOURCES = (
    "or a diffusers folder, a .safetensors file, or a repository of the Hugging Face hub such as "
    f"{hub.STABLE_DIFFUSION_15.repo_id}"
)
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
WEIGHTS = tuple(name for name in hub.PIPELINE_FILES if name.endswith(".safetensors"))

Kind = Literal["folder", "checkpoint", "random", "own"]


def any_prompt(text: str) -> None:
    """Nothing is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A set of SD 1.5-shaped weights and what its images are made with.

    `folder` has the plain diffusers layout; a `checkpoint` source takes only configurations and
    tokenizer from it and its weights from the file `checkpoint`; a `random` one has neither, nor
    an `own` one, whose levels bring their weights (`sdopt.bench.own`). `why` says how this source
    was chosen; every run prints it.
    """

    name: str
    why: str
    kind: Kind = "folder"
    folder: Path | None = None
    checkpoint: Path | None = None
    size_px: int
    guidance_scale: float
    tiny_vae: hub.Repository | None = None
    check_prompt: Callable[[str], None] = any_prompt

    @property
    def is_embedded(self) -> bool:
        """Whether this is the shipped miniature, whose prompts have a true image."""
        return self.folder == embedded.MODEL_DIR

    @property
    def location(self) -> Path | None:
        """The file or folder that its weights are read from."""
        return self.checkpoint or self.folder

    @property
    def tiny_vae_folder(self) -> Path:
        """The folder of the Tiny VAE, beside the other parts or from the hub.

        A level with the Tiny VAE saves it as its `vae`. Raises SourceError if this source has none.
        """
        beside = self.folder / TINY_VAE_FOLDER if self.folder else None
        if beside and (beside / "config.json").is_file():
            return beside
        if self.folder and _is_tiny(own := self.folder / "vae"):
            return own
        if self.tiny_vae:
            return hub.snapshot(self.tiny_vae, hub.MODEL_FILES)
        raise SourceError(
            f"source {self.name!r} has no Tiny VAE: {beside} is missing; "
            "save an AutoencoderTiny there, or pick a level with the full VAE"
        )


def resolve(name: str | None = None) -> Source:
    """The source of that name; see NAMED_SOURCES and OTHER_SOURCES.

    A name of the hub is downloaded unless it is in the local cache; 'auto' never downloads. Raises
    UnknownNameError or SourceError.
    """
    name = name or "auto"
    if not isinstance(name, (str, Path)):
        raise UnknownNameError("source", name, NAMED_SOURCES, OTHER_SOURCES)
    name = str(name)
    if not may_be_path(name):
        raise UnknownNameError("source", shown(name, 60), NAMED_SOURCES, OTHER_SOURCES)
    if name == "auto":
        return _auto()
    if name == "embedded":
        return _embedded("asked for by name")
    if name == "sd15-random":
        return _random("asked for by name")
    path = Path(name)
    if path.is_dir():
        return _from_folder(path)
    if path.suffix == ".safetensors":
        return _from_checkpoint(path)
    if not path.exists() and (path.is_absolute() or name.startswith(".")):
        raise SourceError(f"there is no folder {name}; {_choices()}")
    if HUB_NAME.fullmatch(name) and not path.exists():
        return _from_hub(hub.parse(name))
    raise UnknownNameError("source", name, NAMED_SOURCES, OTHER_SOURCES)


def may_download(name: str) -> bool:
    """Whether `resolve` would ask the hub for it."""
    is_name = HUB_NAME.fullmatch(name) is not None and may_be_path(name)
    return is_name and not Path(name).exists()


def _choices() -> str:
    return f"a source is {', '.join(NAMED_SOURCES)}, {OTHER_SOURCES}"


def _auto() -> Source:
    import torch

    if not torch.cuda.is_available():
        return _embedded("auto: no CUDA device here")
    folder = hub.cached(hub.STABLE_DIFFUSION_15, hub.PIPELINE_FILES, WEIGHTS)
    if folder and hub.cached(hub.TAESD, hub.MODEL_FILES, hub.MODEL_FILES):
        return _of_repository(hub.STABLE_DIFFUSION_15, folder, "auto: it is in the local cache")
    return _random("auto: a CUDA device, and no real weights in the local cache")


def _embedded(why: str) -> Source:
    return Source(
        name="embedded",
        why=why,
        folder=embedded.MODEL_DIR,
        size_px=embedded.SIZE_PX,
        guidance_scale=embedded.GUIDANCE_SCALE,
        check_prompt=check_embedded_prompt,
    )


def _random(why: str) -> Source:
    return Source(
        name="sd15-random",
        why=why,
        kind="random",
        size_px=SD15_SIZE_PX,
        guidance_scale=SD15_GUIDANCE_SCALE,
    )


def _from_hub(repository: hub.Repository) -> Source:
    folder = hub.snapshot(repository, hub.PIPELINE_FILES)
    if missing := [name for name in WEIGHTS if not (folder / name).is_file()]:
        raise SourceError(
            f"{repository} holds no {', '.join(missing)}; it is no Stable Diffusion 1.5 in the "
            "diffusers layout with safetensors weights"
        )
    return _of_repository(repository, folder, f"the repository {repository}")


def _of_repository(repository: hub.Repository, folder: Path, why: str) -> Source:
    # The folder of a snapshot is named by its commit: another one is never compared with this one.
    name = f"{repository.repo_id.replace('/', '--')}--{folder.name[:7]}"
    return _from_folder(folder, name=name, why=why, tiny_vae=hub.TAESD)


def _from_checkpoint(path: Path) -> Source:
    """One file with all weights; the rest comes from its folder, or from the hub's SD 1.5."""
    if not path.is_file():
        raise SourceError(f"there is no file {path}; {_choices()}")
    _check_header(path)
    folder = path.parent
    if not (folder / "model_index.json").is_file():
        folder = _configuration_for(path)
    return _from_folder(
        folder,
        name=_slug(path.stem),
        why=f"the file {path}",
        kind="checkpoint",
        checkpoint=path.resolve(),
        tiny_vae=hub.TAESD,
    )


def check_embedded_prompt(text: str) -> None:
    """Raise UnknownNameError for the first word that the embedded model has never seen."""
    unknown = scenes.unknown_words(text)
    if unknown:
        raise UnknownNameError("prompt word", unknown[0], scenes.VOCABULARY)


def _check_header(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            file.keys()
    except (OSError, SafetensorError) as error:
        raise SourceError(
            f"{path} is not a whole safetensors file: {cause(error)}; download or convert it again"
        ) from error


def _configuration_for(path: Path) -> Path:
    try:
        return hub.snapshot(hub.STABLE_DIFFUSION_15, hub.CONFIG_FILES)
    except SourceError as error:
        raise SourceError(
            f"{path} holds weights alone; its configuration and tokenizer are those of "
            f"{hub.STABLE_DIFFUSION_15.repo_id}, and {error}; or put it into a diffusers folder "
            "that has them"
        ) from error


def _from_folder(folder: Path, **fields: Any) -> Source:
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
        raise SourceError(f"{folder}: unet/config.json or vae/config.json gives no image size")
    described = {"name": _slug(folder.resolve().name), "why": f"the folder {folder}"}
    return Source(
        **{**described, **fields},
        folder=folder.resolve(),
        size_px=latent_px * 2 ** (len(blocks) - 1),
        guidance_scale=SD15_GUIDANCE_SCALE,
    )


def _is_tiny(vae: Path) -> bool:
    return _read_config(vae / "config.json").get("_class_name") == "AutoencoderTiny"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BrokenFileError(
            f"{path} cannot be read: {cause(error)}; save the model again"
        ) from error
    if not isinstance(config, dict):
        raise BrokenFileError(f"{path} holds no JSON object; save the model again")
    return config
