"""Inductor graphs for the UNet and the decoder, shared between levels.

Dynamo keeps its compiled code by code object and guards on the weights' shapes, dtypes and
strides, not on their identity. So two levels whose UNets look alike run the same graph, and freeing
one frees its weights. What would part them is the input: Euler's timesteps are float32 and
DPM-Solver's int64, and every switch of scheduler would compile anew.
"""

from __future__ import annotations

from typing import Any

import torch


def compile_unet(unet: Any) -> None:
    """Compile `unet.forward` in place, one graph for each batch size whatever the scheduler.

    The timestep becomes float32 before it reaches compiled code, which is what the UNet's
    sinusoidal embedding makes of it anyway. `fullgraph` turns a graph break into an error.
    """
    compiled: Any = torch.compile(unet.forward, fullgraph=True, dynamic=False)

    def forward(sample: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        timestep = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device)
        return compiled(sample, timestep, *args, **kwargs)

    unet.forward = forward


def compile_decoder(vae: Any) -> None:
    """Compile the decoder of an AutoencoderKL or an AutoencoderTiny in place."""
    vae.decoder.forward = torch.compile(vae.decoder.forward, fullgraph=True, dynamic=False)
