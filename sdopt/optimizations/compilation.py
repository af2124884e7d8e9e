"""Inductor graphs for the UNet and the decoder, shared between levels.

Dynamo keeps its compiled code by code object and guards on the weights' shapes, dtypes and
strides, not on their identity. So two levels whose UNets look alike run the same graph, and freeing
one frees its weights. What would part them is the input: Euler's timesteps are float32 and
DPM-Solver's int64, and every switch of scheduler would compile anew. Each kind of shapes has a code
object of its own, see `sdopt.optimizations.shapes`.

On CUDA the compiled code is captured in CUDA graphs, one set for each pipeline.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

from sdopt.levels import CompileMode
from sdopt.optimizations.cuda_graphs import GraphedFunction
from sdopt.optimizations.shapes import compiled_by_shapes

INDUCTOR_MODES: dict[CompileMode, str] = {
    "default": "default",
    "max-autotune": "max-autotune-no-cudagraphs",
}
"""Inductor's own CUDA graphs stay off: it would keep their memory after the pipeline is gone."""


def compile_unet(unet: Any, mode: CompileMode = "default") -> None:
    """Compile `unet.forward` in place, one graph for each batch size whatever the scheduler.

    The timestep becomes float32 before it reaches compiled code, which is what the UNet's
    sinusoidal embedding makes of it anyway.
    """
    compiled = _compiled(unet, mode)

    def forward(sample: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        timestep = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device)
        return compiled(sample, timestep, *args, **kwargs)

    unet.forward = forward


def compile_decoder(vae: Any, mode: CompileMode = "default") -> None:
    """Compile the decoder of an AutoencoderKL or an AutoencoderTiny in place."""
    vae.decoder.forward = _compiled(vae.decoder, mode)


def _compiled(module: Any, mode: CompileMode) -> Callable[..., Any]:
    """The class's forward pass, compiled; the module's own `forward` does not keep it alive."""
    compiled = compiled_by_shapes(type(module).forward, INDUCTOR_MODES[mode])
    owner = weakref.ref(module)

    def run(*args: Any, **kwargs: Any) -> Any:
        return compiled(owner(), *args, **kwargs)

    weights = [*module.parameters(), *module.buffers()]
    return GraphedFunction(run, weights)
