"""What a device cannot do for a level, by the level's name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

from sdopt.engine.ops import LEAST_CAPABILITY
from sdopt.errors import OutOfMemoryError, SdoptError
from sdopt.levels import Level


def check_capability(level: Level, device: torch.device) -> None:
    """Raise SdoptError on a GPU that the fused kernels cannot run on."""
    if device.type != "cuda":
        return
    found = torch.cuda.get_device_capability(device)
    if found < LEAST_CAPABILITY:
        raise SdoptError(
            f"level {level.name!r}: its kernels need a GPU of compute capability "
            f"{LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} or newer (Hopper), {device} has "
            f"{found[0]}.{found[1]}; choose 'one-graph' or another level without them"
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
