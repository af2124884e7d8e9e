"""Read a source's weights: quietly, and by the source's name if they cannot be read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import AutoencoderTiny

from sdopt.errors import SourceError
from sdopt.pipelines.no_pickles import without_pickles
from sdopt.weights.sd15 import random_tiny_vae
from sdopt.weights.sources import Source


def load_tiny_vae(source: Source, device: torch.device, dtype: torch.dtype) -> AutoencoderTiny:
    """The source's Tiny VAE (TAESD, https://github.com/madebyollin/taesd)."""
    if source.kind == "random":
        return random_tiny_vae(device, dtype)
    folder = source.tiny_vae_folder
    with reading(source), without_pickles():
        return AutoencoderTiny.from_pretrained(folder, dtype=dtype, use_safetensors=True)


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """Name the source whose weights cannot be read."""
    try:
        yield
    except Exception as error:  # a broken vocabulary raises just that: the base class
        raise SourceError(
            f"source {source.name!r}: {source.location} cannot be loaded: {error}; check that it "
            "is complete; save it again, or delete it and download it again"
        ) from error


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars of diffusers and transformers while weights are read.

    diffusers logs an error before it raises it; it is told once, by `reading`.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = [
        log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()
    ]
    for log in loggers:
        log.disable_progress_bar()
    twice = logging.getLogger("diffusers.models.modeling_utils")
    twice.addFilter(_is_no_error)
    try:
        yield
    finally:
        twice.removeFilter(_is_no_error)
        for log in loggers:
            log.enable_progress_bar()


def _is_no_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR
