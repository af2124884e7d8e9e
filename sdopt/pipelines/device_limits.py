"""What a device cannot do for a level, by the level's name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
