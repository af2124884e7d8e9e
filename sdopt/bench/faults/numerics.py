"""Faults of arithmetic that hardly move an image: the solver's, an attention's, the noise's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import TYPE_CHECKING, Any

from sdopt.bench.faults.fault import Fault
from sdopt.util.replaced import replaced

if TYPE_CHECKING:
    from sdopt.bench.faults.fault import Inject
    from sdopt.pipelines.pipeline import LevelPipeline

LARGER = 1.02
"""So much are an attention's queries too large."""
TWICE = 2.0
"""And so much in float16, where any other rounding moves the final latents by 4e-4, and queries
2 % larger by no more: see docs/evidence/self-test.md."""
ATTENTION = "attentions.0.transformer_blocks.0.attn1"
RACING_KEY = "upsample 2x32x32x640-640"
"""A convolution of SD 1.5, whose stored tile was once the racing one."""
RACING_TILE: dict[str, Any] = {
    "height": 8,
    "width": 16,
    "columns": 128,
    "depth": 64,
    "stages": 3,
    "warps": 8,
}
COARSER = {"float32": "float16", "float16": "bfloat16", "bfloat16": "float8_e4m3fn"}
"""What the noise is rounded to, where a level computes in that dtype."""
UNEVEN = 1e-3
"""What the stand-in for a race adds to one value of each prediction, times the number of calls."""


def numeric_faults(level: str, dtype: str, *, trained: bool = True) -> list[Fault]:
    """Every one, for that level; `dtype` is what it computes in, for example 'float16'.

    Latents in float64 are generated on the CPU, whose levels compute in float32. In float16 final
    latents show only what is larger than its rounding: the proof of effect has to see the solver's
    and the noise's. Random weights attend to everything alike, so theirs show no attention's.
    """
    group = f"numerics of {level}"
    on_cpu = dtype == "float32"
    finest = "latent_drift_float64" if on_cpu else "latent_drift"
    exact = finest if on_cpu else "effect"
    both = ("latent_drift", "effect") if on_cpu else ()
    coarser = COARSER[dtype]
    middle, first = f"mid_block.{ATTENTION}", f"down_blocks.0.{ATTENTION}"

    def fault(
        name: str,
        inject: Inject,
        caught_by: str = exact,
        and_by: tuple[str, ...] = (),
        says: str = "",
    ) -> Fault:
        return Fault(
            group=group, name=name, inject=inject, caught_by=caught_by, and_by=and_by, says=says
        )

    in_the_first = "in the first down block"
    attention = [fault(f"queries twice as large {in_the_first}", _queries(first, TWICE), finest)]
    if on_cpu:
        attention = [
            fault("queries 2 % larger in the middle block", _queries(middle, LARGER)),
            fault(
                f"queries 2 % larger {in_the_first}",
                _queries(first, LARGER),
                and_by=("latent_drift",),
            ),
        ]
    return [
        Fault(group=group, name="none (control)", inject=nullcontext, caught_by=None),
        *(attention if trained else []),
        fault(
            "timestep spacing trailing",
            _rescheduled(timestep_spacing="trailing"),
            and_by=both,
            says="solver: timestep_spacing is 'trailing'",
        ),
        fault(
            "solver type heun",
            _rescheduled(solver_type="heun"),
            and_by=both,
            says="solver: solver_type is 'heun'",
        ),
        fault(
            f"noise rounded to {coarser}",
            _rounded_noise(coarser),
            and_by=("effect",) if on_cpu else (),
            says="noise: the values of the UNet's first sample differ",
        ),
    ]


def racing_faults(level: str, device: str) -> list[Fault]:
    """Levels that generate another image each time.

    The stand-in counts calls on the host, which no captured graph of the engine repeats.
    """
    stand_in = Fault(
        group=f"numerics of {level}",
        name="a racing kernel's stand-in",
        inject=racing_stand_in,
        caught_by="repeat",
    )
    return [stand_in] if device == "cpu" or level == "final" else []


def racing_tile_fault() -> Fault:
    """The engine with a tile that races on Hopper; needs CUDA and SD 1.5's shapes."""
    return Fault(group="engine", name="racing tile", inject=_racing_tile, caught_by="repeat")


def _queries(attention: str, factor: float) -> Inject:
    @contextmanager
    def inject(pipeline: LevelPipeline) -> Iterator[Any]:
        import torch

        weight = pipeline.unet.get_submodule(attention).to_q.weight
        before = weight.detach().clone()
        with torch.no_grad():
            weight.mul_(factor)
        try:
            yield pipeline
        finally:
            with torch.no_grad():
                weight.copy_(before)

    return inject


def _rescheduled(**changes: Any) -> Inject:
    """The same scheduler with other options; the engine reads it anew."""

    @contextmanager
    def inject(pipeline: LevelPipeline) -> Iterator[Any]:
        before = pipeline.scheduler
        changed = type(before).from_config(before.config, **changes)
        pipeline.register_modules(scheduler=changed)
        try:
            with replaced(pipeline, "engine", _fresh_engine(pipeline)):
                yield pipeline
        finally:
            pipeline.register_modules(scheduler=before)

    return inject


def _fresh_engine(pipeline: LevelPipeline) -> Any:
    """One without graphs and tables, or None for a level without an engine."""
    from sdopt.engine.image import ImageEngine

    if pipeline.engine is None:
        return None
    return ImageEngine(pipeline=pipeline, level=pipeline.engine.level)


def _rounded_noise(dtype: str) -> Inject:
    @contextmanager
    def inject(pipeline: LevelPipeline) -> Iterator[Any]:
        import torch

        prepare = pipeline.prepare_latents

        def rounded(*args: Any, **kwargs: Any) -> Any:
            noise = prepare(*args, **kwargs)
            return noise.to(getattr(torch, dtype)).to(noise.dtype)

        with replaced(pipeline, "prepare_latents", rounded):
            yield pipeline

    return inject


@contextmanager
def racing_stand_in(pipeline: LevelPipeline) -> Iterator[Any]:
    """One value of each prediction depends on how often the UNet was called before."""
    calls = count()
    forward = pipeline.unet.forward

    def raced(*args: Any, **kwargs: Any) -> Any:
        predicted, *stored = forward(*args, **kwargs)
        predicted = predicted.clone()
        predicted[0, 0, 0, 0] += UNEVEN * next(calls)
        return predicted, *stored

    with (
        replaced(pipeline.unet, "forward", raced),
        replaced(pipeline, "engine", _fresh_engine(pipeline)),
    ):
        yield pipeline


@contextmanager
def _racing_tile(pipeline: LevelPipeline) -> Iterator[Any]:
    """ImageAndLatents by graphs that are captured with that tile."""
    from sdopt.engine.cards import H100, card_of
    from sdopt.engine.tables import tuned
    from sdopt.engine.tiles import Tile

    table = tuned(card_of(pipeline.device) if pipeline.device.type == "cuda" else H100)
    before = table.get(RACING_KEY)
    table[RACING_KEY] = Tile(**RACING_TILE)
    try:
        with replaced(pipeline, "engine", _fresh_engine(pipeline)):
            yield pipeline
    finally:
        if before is None:
            del table[RACING_KEY]
        else:
            table[RACING_KEY] = before
