"""Faults of the engine: it draws, and silently does not optimize."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sdopt.bench.faults.fault import Fault
from sdopt.util.replaced import replaced

if TYPE_CHECKING:
    from sdopt.bench.faults.fault import Inject
    from sdopt.pipelines.pipeline import LevelPipeline


def engine_faults() -> list[Fault]:
    """Every one; `turbo` has to be the level."""
    return [
        Fault(group="engine", name="none (control)", inject=nullcontext, caught_by=None),
        Fault(
            group="engine",
            name="fused UNet not used",
            inject=_unfused,
            caught_by="effect",
            says="fused: the engine's forward pass ran in 0 of",
        ),
        Fault(
            group="engine",
            name="nothing hoisted",
            inject=_drawn_as(hoisted=False),
            caught_by="effect",
            says="hoisted: keys and values of the prompts were computed 20 times",
        ),
        Fault(
            group="engine",
            name="time embeddings not hoisted",
            inject=_embedding_each_step,
            caught_by="effect",
            says="hoisted: time embeddings were computed 21 times",
        ),
        Fault(
            group="engine",
            name="every step a full one",
            inject=_drawn_as(feature_cache=False),
            caught_by="unet_evaluations",
            says="unet called 5 -> 20 times",
        ),
        Fault(
            group="engine",
            name="deep features computed anew",
            inject=_nothing_reused,
            caught_by="effect",
            says="fused: the whole UNet was computed 20 times",
        ),
        Fault(
            group="engine",
            name="guidance never dropped",
            inject=_drawn_as(cfg_cutoff=None),
            caught_by="effect",
            says="UNet evaluations: batch sizes 20 x 2",
        ),
        Fault(
            group="engine",
            name="drawn by diffusers' own loop",
            inject=_without_engine,
            caught_by="effect",
            says="engine: it drew the picture: False",
        ),
    ]


def _drawn_as(**changes: Any) -> Inject:
    """The engine draws as if the level were another."""
    return lambda pipeline: replaced(pipeline, "engine", _engine(pipeline, **changes))


def _engine(pipeline: LevelPipeline, **changes: Any) -> Any:
    """One of its own: graphs that the pipeline's has captured would still draw as before."""
    from sdopt.engine.picture import PictureEngine

    return PictureEngine(pipeline=pipeline, level=replace(pipeline.level, **changes))


def _without_engine(pipeline: LevelPipeline) -> AbstractContextManager[Any]:
    return replaced(pipeline, "engine", None)


def _unfused(pipeline: LevelPipeline) -> AbstractContextManager[Any]:
    """diffusers' own forward pass, which is given what only the fused one can use."""
    own = type(pipeline.unet).forward.__get__(pipeline.unet)

    def forward(
        sample: Any, timestep: Any, encoder_hidden_states: Any, return_dict: bool = True, **_: Any
    ) -> Any:
        return own(sample, timestep, encoder_hidden_states, return_dict=return_dict)

    return _predicting(pipeline, forward)


def _embedding_each_step(pipeline: LevelPipeline) -> AbstractContextManager[Any]:
    fused: Any = pipeline.fused_unet
    predict = pipeline.unet.forward

    def forward(sample: Any, timestep: Any, *args: Any, hoisted: Any, **kwargs: Any) -> Any:
        rows = fused.shifts(timestep.reshape(1))
        anew = replace(hoisted, shift={module: shift[0] for module, shift in rows.items()})
        return predict(sample, timestep, *args, hoisted=anew, **kwargs)

    return _predicting(pipeline, forward)


def _nothing_reused(pipeline: LevelPipeline) -> AbstractContextManager[Any]:
    """The UNet takes the deep features of an earlier step, and computes its own."""
    predict = pipeline.unet.forward

    def forward(*args: Any, deep: Any = None, **kwargs: Any) -> Any:
        return predict(*args, **kwargs)

    return _predicting(pipeline, forward)


@contextmanager
def _predicting(pipeline: LevelPipeline, forward: Any) -> Iterator[Any]:
    """Another forward pass of the UNet, drawn by an engine that has no graphs yet."""
    with (
        replaced(pipeline.unet, "forward", forward),
        replaced(pipeline, "engine", _engine(pipeline)),
    ):
        yield pipeline
