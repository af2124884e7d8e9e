"""Model repositories of the Hugging Face hub: downloaded once, pinned, read from the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdopt.errors import SourceError

PIPELINE_FILES = (
    "model_index.json",
    "scheduler/*.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/*",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "tiny_vae/*",
)
CONFIG_FILES = tuple(
    name for name in PIPELINE_FILES if not name.endswith((".safetensors", "vae/*"))
)
MODEL_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
MAIN = "main"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A model repository at a revision: a commit, a branch or a tag."""

    repo_id: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision}"


STABLE_DIFFUSION_15 = Repository(
    repo_id="stable-diffusion-v1-5/stable-diffusion-v1-5",
    revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
)
TAESD = Repository(repo_id="madebyollin/taesd", revision="614f76814bbe30edbe2e627ace1c2234c81a2c0e")
PINNED = {repository.repo_id: repository for repository in (STABLE_DIFFUSION_15, TAESD)}


def parse(name: str) -> Repository:
    """'owner/name' or 'owner/name@revision'. Without a revision: the pinned one, else `main`."""
    repo_id, _, revision = name.partition("@")
    if revision:
        return Repository(repo_id=repo_id, revision=revision)
    return PINNED.get(repo_id, Repository(repo_id=repo_id, revision=MAIN))


def snapshot(repository: Repository, files: Sequence[str]) -> Path:
    """The folder of the repository's files in the local cache; downloaded if they are not there.

    `files` are glob patterns. Raises SourceError that says what to do if they cannot be had.
    """
    from huggingface_hub import errors

    try:
        return _download(repository, files, offline=False)
    except errors.GatedRepoError as error:
        raise SourceError(
            f"{repository} is gated: accept its terms on {_page(repository)}, then run "
            "'hf auth login' or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"the hub has no repository {repository.repo_id!r} that you may read; check the name, "
            "or run 'hf auth login' if it is private"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(
            f"{repository.repo_id} has no revision {repository.revision!r}; see "
            f"{_page(repository)}/commits"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise SourceError(
            f"{repository} is not whole in the local cache {_cache()} and the hub cannot be "
            f"reached ({_first_line(error)}); run once with a network, set HF_ENDPOINT to a "
            "mirror, or copy the cache from another machine"
        ) from error
    except Exception as error:  # those of whichever HTTP library the hub's client uses
        raise SourceError(
            f"{repository} could not be downloaded: {_first_line(error)}; run it again: what was "
            "already downloaded is kept"
        ) from error


def cached(repository: Repository, files: Sequence[str], needed: Sequence[str]) -> Path | None:
    """As `snapshot`, but without any network: None unless all of the `needed` files are there."""
    from huggingface_hub import errors

    try:
        folder = _download(repository, files, offline=True)
    except errors.LocalEntryNotFoundError:
        return None
    return folder if all((folder / name).is_file() for name in needed) else None


def _download(repository: Repository, files: Sequence[str], *, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        repository.repo_id,
        revision=repository.revision,
        allow_patterns=list(files),
        local_files_only=offline,
    )
    return Path(folder)


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _page(repository: Repository) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repository.repo_id}"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
