"""Faults of a level: it runs, its images are right, and it silently does not optimize."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import TYPE_CHECKING, Any

import torch

from sdopt.bench.faults.fault import Fault
from sdopt.util.replaced import replaced

if TYPE_CHECKING:
    from sdopt.pipelines.pipeline import LevelPipeline


def optimization_faults() -> list[Fault]:
    """Every one; `final` has to be the level."""
    return [
        Fault(group="level", name="none (control)", inject=nullcontext, caught_by=None),
        Fault(
            group="level",
            name="compiled code not used",
            inject=_not_compiled,
            caught_by="effect",
            says="Inductor code ran in 0 of",
        ),
        Fault(
            group="level", name="a recompile each call", inject=_recompiling, caught_by="recompiles"
        ),
        Fault(
            group="level",
            name="a graph break in the decoder",
            inject=_broken_graph,
            caught_by="graph_breaks",
        ),
        Fault(
            group="level",
            name="Tiny VAE not swapped in",
            inject=_full_vae,
            caught_by="effect",
            says="decoder: it is AutoencoderKL",
        ),
        Fault(
            group="level",
            name="scheduler not swapped in",
            inject=_first_scheduler,
            caught_by="effect",
            says="scheduler: it is EulerAncestral",
        ),
        Fault(
            group="level",
            name="channels-last lost",
            inject=_contiguous,
            caught_by="effect",
            says="weights are not channels-last",
        ),
    ]


@contextmanager
def _not_compiled(pipeline: LevelPipeline) -> Iterator[Any]:
    with torch.compiler.set_stance("force_eager"):
        yield pipeline


@contextmanager
def _recompiling(pipeline: LevelPipeline) -> Iterator[Any]:
    """Something small before the decoder's call that Dynamo has to compile anew every time."""
    calls = count(2)

    def shifted(value: torch.Tensor) -> torch.Tensor:
        return value + 1

    compiled = torch.compile(shifted, backend="eager", dynamic=False)

    def compile_again(module: Any, args: tuple[Any, ...]) -> None:
        compiled(torch.zeros(next(calls)))

    handle = pipeline.vae.decoder.register_forward_pre_hook(compile_again)
    try:
        yield pipeline
    finally:
        handle.remove()


@contextmanager
def _broken_graph(pipeline: LevelPipeline) -> Iterator[Any]:
    """The decoder compiled once more, without `fullgraph` and with a break at its beginning."""
    decoder = pipeline.vae.decoder
    eager = type(decoder).forward.__get__(decoder)

    def broken(latents: torch.Tensor) -> Any:
        latents = latents * 1.0
        torch._dynamo.graph_break()
        return eager(latents)

    with replaced(decoder, "forward", torch.compile(broken, dynamic=False)):
        yield pipeline


@contextmanager
def _full_vae(pipeline: LevelPipeline) -> Iterator[Any]:
    from sdopt.pipelines.pipeline import load_weights

    plain = load_weights(pipeline.source, pipeline.device, pipeline.unet.dtype)
    tiny = pipeline.vae
    pipeline.register_modules(vae=plain.vae.to(pipeline.device))
    try:
        yield pipeline
    finally:
        pipeline.register_modules(vae=tiny)


@contextmanager
def _first_scheduler(pipeline: LevelPipeline) -> Iterator[Any]:
    from diffusers import EulerAncestralDiscreteScheduler

    before = pipeline.scheduler
    first = EulerAncestralDiscreteScheduler.from_config(before.config)
    pipeline.register_modules(scheduler=first)
    try:
        # Eager: its inputs' layout is another, and Inductor would spend a minute on it.
        with torch.compiler.set_stance("force_eager"):
            yield pipeline
    finally:
        pipeline.register_modules(scheduler=before)


@contextmanager
def _contiguous(pipeline: LevelPipeline) -> Iterator[Any]:
    """The UNet's weights in the default layout; eager, or Inductor would spend minutes on it."""
    pipeline.unet.to(memory_format=torch.contiguous_format)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield pipeline
    finally:
        pipeline.unet.to(memory_format=torch.channels_last)
