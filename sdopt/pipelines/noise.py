"""The noise that a seed begins with, the same on every device, in every dtype and with every torch.

`torch.randn` of torch 2.11 draws other values in float16 and bfloat16 than in float32 from the same
seed; torch 2.13 draws float32's and rounds them. So does this, with both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

Generators = torch.Generator | list[torch.Generator] | None

_portable: ContextVar[bool] = ContextVar("portable_noise", default=False)


@contextmanager
def portable_noise() -> Iterator[None]:
    """Levels draw their first noise so in here; elsewhere as diffusers does, in the weights' type.

    The suite, `sdopt generate`, `sdopt serve` and evaluations are in here: what they store is
    compared with what another version of torch makes, or another device.
    """
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def is_portable(dtype: torch.dtype) -> bool:
    """Whether a level has to draw its noise so: inside of `portable_noise`, of a narrow type."""
    return _portable.get() and dtype.itemsize < torch.float32.itemsize


def rounded_noise(
    shape: tuple[int, ...],
    generator: Generators,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> Tensor:
    """Normal noise, drawn in float32 where the generator is, rounded; on `device` or the CPU."""
    place = device or torch.device("cpu")
    drawn: Tensor = randn_tensor(shape, generator, place, torch.float32)
    return drawn.to(dtype)
