"""The noise of a seed, the same on every device, in every dtype and with every supported PyTorch.

From one seed `torch.randn` of PyTorch 2.11 draws other values in float16 and bfloat16 than in
float32; that of 2.13 draws float32's and rounds them. Inside of `portable_noise` both do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion
from diffusers.schedulers import scheduling_euler_ancestral_discrete
from diffusers.utils import torch_utils
from torch import Tensor

DRAWING = (pipeline_stable_diffusion, scheduling_euler_ancestral_discrete)
"""Where a level's noise is drawn: at its start, and after each step of an ancestral sampler."""

_portable: ContextVar[bool] = ContextVar("portable_noise", default=False)


@contextmanager
def portable_noise() -> Iterator[None]:
    """Pipelines that are called in here draw their noise in float32, then round it.

    The suite and the commands do so. Elsewhere it is drawn as diffusers does, in the weights' type.
    """
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def randn_tensor(
    shape: tuple[int, ...],
    generator: torch.Generator | list[torch.Generator] | None = None,
    device: Any = None,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
) -> Tensor:
    """As diffusers' function of this name, which it stands for, but for `portable_noise`."""
    narrow = dtype is not None and dtype.itemsize < torch.float32.itemsize
    drawn_in = torch.float32 if narrow and _portable.get() else dtype
    drawn: Tensor = torch_utils.randn_tensor(shape, generator, device, drawn_in, layout)
    return drawn if dtype is None else drawn.to(dtype)


for _module in DRAWING:
    _module.randn_tensor = randn_tensor
