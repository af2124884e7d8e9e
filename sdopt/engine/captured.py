"""An image's graph as it was captured: what it depends on, what it reads and what it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdopt.engine.stages import Tick

UNKNOWN = 2
"""What a flag is that the device has not written yet."""


@dataclass(frozen=True)
class Kind:
    """What the kernels of an image depend on: images at once, latents, steps, guidance."""

    images: int
    height: int
    width: int
    tokens: int
    steps: int
    guided_steps: int


@dataclass(kw_only=True)
class Inputs:
    """What a graph reads: token ids (prompts, tokens), noise (B, H, W, 4), factors (steps, 6)."""

    ids: Tensor
    noise: Tensor
    factors: Tensor
    times: Tensor

    def on(self, device: torch.device) -> Inputs:
        """The same values on that device, in memory of their own."""
        return Inputs(
            ids=self.ids.to(device, copy=True),
            noise=self.noise.to(device, copy=True),
            factors=self.factors.to(device, copy=True),
            times=self.times.to(device, copy=True),
        )


@dataclass(kw_only=True)
class Captured:
    """A graph with the tensors it reads and writes; `ticks` are events between its stages.

    `latents` are what the decoder reads; `factors` is the table whose values its inputs hold.
    `flag`, on the host, says from `looked` on whether weights had other values when the graph
    began, and UNKNOWN until then.
    """

    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    image: Tensor
    latents: Tensor
    ticks: list[Tick]
    factors: Tensor
    flag: Tensor
    looked: Any

    def read(self, inputs: Inputs) -> None:
        """Take their values over; the times are part of what a graph was captured for."""
        self.inputs.ids.copy_(inputs.ids)
        self.inputs.noise.copy_(inputs.noise)
        if inputs.factors is not self.factors:
            self.inputs.factors.copy_(inputs.factors)
            self.factors = inputs.factors
