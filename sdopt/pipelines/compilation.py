"""Inductor graphs for the UNet and the decoder, shared between levels.

Dynamo keeps its compiled code by code object and guards on the weights' shapes, dtypes and
strides, not on their identity. So two levels whose UNets look alike run the same graph, and freeing
one frees its weights. What would part them is the input: Euler's timesteps are float32 and
DPM-Solver's int64, and every switch of scheduler would compile anew. Each kind of shapes has a code
object of its own, see `sdopt.pipelines.shapes`.

On CUDA the compiled code is captured in CUDA graphs, one set for each pipeline. Both hold for the
module as it was built: see `CompiledForward`.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sdopt.engine.adapters import keeping_scales
from sdopt.engine.cuda_graphs import GraphedFunction
from sdopt.engine.put_in import PutIn
from sdopt.engine.stock import foreign
from sdopt.engine.watch import Watch
from sdopt.levels import CompileMode
from sdopt.pipelines.shapes import compiled_by_shapes, copy_of

logger = logging.getLogger(__name__)

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
    compiled = CompiledForward(unet, mode, "unet")

    def forward(sample: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        timestep = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device)
        return compiled(sample, timestep, *args, **kwargs)

    unet.forward = PutIn(unet, forward)


def compile_decoder(vae: Any, mode: CompileMode = "default") -> None:
    """Compile the decoder of an AutoencoderKL or an AutoencoderTiny in place."""
    vae.decoder.forward = PutIn(vae.decoder, CompiledForward(vae.decoder, mode, "vae.decoder"))


class CompiledForward:
    """A module's forward pass, compiled and captured for what the module is at that time.

    Dynamo guards on much of a module, but not on hooks, and what a CUDA graph has captured it
    guards on no more. So each call looks whether the module, the modules below it, their
    attributes, classes, hooks or attention processors are others now. If so, what was compiled and
    captured is left aside until the change is undone, and other code is compiled for what is
    there now. What is no stock code may do anything at each call: then the module runs eagerly.
    The module is not kept alive, since its `forward` leads here.
    """

    def __init__(self, module: nn.Module, mode: CompileMode, name: str) -> None:
        self.name = name
        self._module = weakref.ref(module)
        self._mode = INDUCTOR_MODES[mode]
        # That of like modules is the class's, so they share what is compiled for it.
        self._built = self._compiled(type(module).forward)
        self._watch_built = Watch([module])
        self._run: Callable[..., Any] = self._built
        self._watch = self._watch_built
        self._adapt(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the class's own forward pass returns."""
        module = self._module()
        if module is None:
            raise ReferenceError(f"the {self.name} is gone")
        if self._watch.structure_changed():
            self._adapt(module)
        elif self._watch.weights_moved():
            self._forget()
            self._watch = Watch([module])
            if self._run is self._built:
                self._watch_built = self._watch
        run = self._run
        if isinstance(run, GraphedFunction) and _wants_gradients(module):
            run = run.function  # a replayed graph would lose those of the weights
        if not kwargs.get("cross_attention_kwargs"):
            return run(*args, **kwargs)
        with keeping_scales([module]):
            return run(*args, **kwargs)

    def _adapt(self, module: nn.Module) -> None:
        """Go on with what the module is now."""
        self._forget()
        forward: Any = type(module).forward
        as_built = not self._watch_built.structure_changed()
        self._watch = self._watch_built if as_built else Watch([module])
        if patch := foreign({self.name: module}):
            logger.warning("%s runs eagerly, not compiled: %s", self.name, patch)
            self._run = self._called(forward)
        else:
            self._run = self._built if as_built else self._compiled(copy_of(forward))

    def _compiled(self, forward: Any) -> GraphedFunction:
        return GraphedFunction(self._called(compiled_by_shapes(forward, self._mode)), [])

    def _called(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A forward pass of the module, which leads neither to it nor back here."""
        module = self._module
        return lambda *args, **kwargs: forward(module(), *args, **kwargs)

    def _forget(self) -> None:
        """Drop what was captured: it has read other weights."""
        if isinstance(self._run, GraphedFunction):
            self._run.forget()


def _wants_gradients(module: nn.Module) -> bool:
    return torch.is_grad_enabled() and any(weight.requires_grad for weight in module.parameters())
