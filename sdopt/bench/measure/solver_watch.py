"""What an image began with and how the solver moved it, noted while it is generated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdopt.util.replaced import replaced

if TYPE_CHECKING:
    from sdopt.pipelines.pipeline import LevelPipeline


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call of `scheduler.step`; `generator` is the state of its random numbers before it."""

    timestep: Tensor
    prediction: Tensor
    before: Tensor
    after: Tensor
    generator: Tensor | None = None


@dataclass(kw_only=True)
class SeenSolver:
    """The solver of one image as it ran.

    `first_input` is the conditional sample of the first UNet call, (1, 4, H, W). A loop of
    diffusers has `steps` and the scheduler's `sigmas`; the engine's instead the `table` that it
    read: timesteps, and factors as `engine.solver.Solver` describes them.
    """

    config: dict[str, Any]
    first_input: Tensor | None = None
    steps: list[Step] = field(default_factory=list)
    sigmas: Tensor | None = None
    table: tuple[Tensor, Tensor] | None = None


@contextmanager
def watched_solver(pipeline: LevelPipeline) -> Iterator[SeenSolver]:
    """Note the solver of the image that is generated inside."""
    scheduler = pipeline.scheduler
    seen = SeenSolver(config=dict(scheduler.config))
    steps_of_engine = pipeline.engine.steps_run if pipeline.engine else 0
    with ExitStack() as stack:
        stack.enter_context(_first_input(pipeline.unet, seen))
        stack.enter_context(_noted_steps(scheduler, seen.steps))
        yield seen
    if pipeline.engine and pipeline.engine.steps_run > steps_of_engine:
        times, factors = pipeline.engine.tables
        seen.table = (times.cpu(), factors.cpu())
    elif seen.steps:
        sigmas = getattr(scheduler, "sigmas", None)  # PNDM has none
        seen.sigmas = None if sigmas is None else sigmas.detach().cpu().clone()


@contextmanager
def _first_input(unet: Any, seen: SeenSolver) -> Iterator[None]:
    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if seen.first_input is None:
            sample = args[0] if args else kwargs.get("sample")
            if isinstance(sample, Tensor):  # a project's own denoiser may name it otherwise
                seen.first_input = sample[-1:].detach().clone()

    handle = unet.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _noted_steps(scheduler: Any, steps: list[Step]) -> Iterator[None]:
    own = scheduler.step

    @wraps(own)  # diffusers asks the signature whether a step takes a generator
    def noted(prediction: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        generator = kwargs.get("generator")
        state = generator.get_state() if isinstance(generator, torch.Generator) else None
        before, predicted = sample.detach().clone(), prediction.detach().clone()
        moved = own(prediction, timestep, sample, *args, **kwargs)
        steps.append(
            Step(
                timestep=torch.as_tensor(timestep).detach().cpu().clone(),
                prediction=predicted,
                before=before,
                after=moved[0].detach().clone(),
                generator=state,
            )
        )
        return moved

    with replaced(scheduler, "step", noted):
        yield
