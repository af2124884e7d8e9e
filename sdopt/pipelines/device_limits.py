"""What a device cannot do for a level, by the level's name."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import NoReturn

import torch

from sdopt.engine.cards import LEAST_CAPABILITY, card_of
from sdopt.engine.tables import described, table_of
from sdopt.errors import OutOfMemoryError, UnsupportedCardError
from sdopt.levels import Level
from sdopt.util.precision import usual_dtype

logger = logging.getLogger(__name__)


def check_capability(level: Level, device: torch.device) -> None:
    """Raise UnsupportedCardError on a device that the level's kernels or graphs cannot run on.

    Eager and compiled levels run wherever PyTorch does.
    """
    if device.type == "cpu" or not (level.whole_graph or level.fused):
        return
    if device.type != "cuda":
        _refuse(level, f"its CUDA graph needs an NVIDIA GPU, {device} is none", "final")
    if torch.version.hip is not None:
        _refuse(
            level, f"its graph and kernels are for NVIDIA GPUs, {device} is one of ROCm", "final"
        )
    major, minor = torch.cuda.get_device_capability(device)
    if level.fused and 10 * major + minor < LEAST_CAPABILITY:
        least = divmod(LEAST_CAPABILITY, 10)
        _refuse(
            level,
            f"its kernels need a GPU of compute capability {least[0]}.{least[1]} or newer "
            f"(Ampere), {device} has {major}.{minor}",
            "one-graph",
        )
    if level.float8 and not card_of(device).specialized:
        _refuse(
            level,
            f"its float8 kernels are for Hopper GPUs (compute capability 9) and a Triton whose "
            f"Gluon compiles them; {card_of(device)} takes others",
            str(level.reference),
        )


def check_dtype(level: Level, device: torch.device, dtype: torch.dtype) -> None:
    """Raise UnsupportedCardError for bfloat16 on a GPU that would only emulate it."""
    if device.type != "cuda" or dtype != torch.bfloat16 or torch.version.hip is not None:
        return
    major, minor = torch.cuda.get_device_capability(device)
    if 10 * major + minor < LEAST_CAPABILITY:
        raise UnsupportedCardError(
            f"level {level.name!r}: bfloat16 needs a GPU of compute capability 8.0 or newer "
            f"(Ampere), {device} has {major}.{minor}; choose from: {usual_dtype(device.type)}"
        )


def warn_of_rules(level: Level, device: torch.device) -> None:
    """Say that nobody measured how the level's kernels are best cut on this card, if so."""
    if device.type == "cuda" and table_of(card := card_of(device)) is None:
        logger.warning("level %r: %s", level.name, described(card))


def _refuse(level: Level, reason: str, other: str) -> NoReturn:
    raise UnsupportedCardError(
        f"level {level.name!r}: {reason}; choose {other!r} or a level before it"
    )


def cpp_compiler() -> str | None:
    """The C++ compiler that Inductor finds for the CPU: $CXX, g++ or clang++."""
    names = (os.environ.get("CXX"), "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def missing_compiler(level: Level, device: torch.device) -> str | None:
    """What a level is compiled with and is not installed; None if nothing is missing."""
    if device.type == "cuda" and (level.compiled or level.fused) and find_spec("triton") is None:
        return "kernels are compiled with Triton, and there is none; pip install triton"
    if device.type == "cpu" and level.compiled and cpp_compiler() is None:
        return "compiled levels need a C++ compiler, and there is none; install g++ or clang++"
    return None


@contextmanager
def naming_the_hungry(level: Level, device: torch.device) -> Iterator[None]:
    """Name the level that ran out of memory, what it held and what it asked for."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        held = torch.cuda.max_memory_allocated(device) / 2**20
        raise OutOfMemoryError(
            f"level {level.name!r} does not fit on {device}: it held {held:.0f} MiB when this "
            f"failed: {error}; end what else uses the device, generate fewer or smaller images, or "
            "pick a level with the Tiny VAE"
        ) from error
