"""What a level promises of the solver and the noise of one request, and which of it was broken.

Nothing here is taken from the running pipeline: the scheduler is built anew from the configuration
that the source stores and from the level's row, the noise is drawn anew by the request's seed.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdopt.bench.measure.solver_watch import SeenSolver, Step
from sdopt.engine.solver import GUIDANCE, solver_for
from sdopt.errors import BrokenFileError
from sdopt.levels import Level
from sdopt.pipelines.noise import portable_noise
from sdopt.pipelines.workload import Request
from sdopt.util.files import cause
from sdopt.weights.sources import Source

if TYPE_CHECKING:
    from sdopt.bench.measure.observation import Observation

CHANNELS, SCALE = 4, 8
"""Of SD 1.5's latents: channels, and pixels a side of one."""
FACTORS = (
    "guidance",
    "sample to estimate",
    "noise to estimate",
    "sample",
    "estimate",
    "estimate before",
)
"""What the columns of the engine's table of factors multiply."""


@dataclass(frozen=True, kw_only=True)
class Promise:
    """A level's solver and first noise for one request.

    `scheduler` has its timesteps set; `noise` is (1, 4, H, W) in the pipeline's dtype, on the CPU,
    where seeds are drawn. `factors` are the engine's, or None.
    """

    scheduler: Any
    noise: Tensor
    factors: Tensor | None = None


def promise_of(source: Source, level: Level, request: Request, dtype: str) -> Promise:
    """What the level promises of the request with that source; `dtype` is for example 'float16'."""
    scheduler = promised_scheduler(source, level)
    factors = None
    if level.whole_graph:
        factors = solver_for(scheduler, level.steps).factors
        factors[:, GUIDANCE] = source.guidance_scale
    scheduler.set_timesteps(level.steps)
    side = source.size_px // SCALE
    seeded = torch.Generator("cpu").manual_seed(request.seed)
    noise = torch.randn((1, CHANNELS, side, side), generator=seeded)
    return Promise(scheduler=scheduler, noise=noise.to(getattr(torch, dtype)), factors=factors)


def promised_scheduler(source: Source, level: Level) -> Any:
    """The scheduler of the level's row with the options that the source stores."""
    from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler

    config = _stored_config(source)
    if level.scheduler == "dpm-solver++2m":
        own = {"algorithm_type": "dpmsolver++", "solver_order": 2}
        return DPMSolverMultistepScheduler.from_config(config, **own)
    return EulerAncestralDiscreteScheduler.from_config(config)


def _stored_config(source: Source) -> dict[str, Any]:
    if source.folder is None:
        from sdopt.miniature.architecture import SCHEDULER_CONFIG

        return dict(SCHEDULER_CONFIG)
    path = source.folder / "scheduler" / "scheduler_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BrokenFileError(
            f"{path} cannot be read: {cause(error)}; save the model again"
        ) from error
    if not isinstance(config, dict):
        raise BrokenFileError(f"{path} holds no JSON object; save the model again")
    return config


def broken_promises(promise: Promise | None, seen: Observation) -> tuple[str, ...]:
    """One sentence for each way in which solver or noise were others; empty is the proof.

    A project's own pipeline promises nothing of them.
    """
    if promise is None:
        return ()
    solver = seen.solver
    if solver is None:
        return ("solver: nothing of it was seen",)
    checks = (_config, _noise, _table if solver.table else _loop)
    return tuple(sentence for check in checks for sentence in check(promise, solver))


def _config(promise: Promise, solver: SeenSolver) -> Iterator[str]:
    """Every option of the promised class; another class is named by the proof of the level."""
    wanted = promise.scheduler.config
    for name in inspect.signature(type(promise.scheduler).__init__).parameters:
        if name in wanted and name in solver.config and solver.config[name] != wanted[name]:
            yield f"solver: {name} is {solver.config[name]!r}, promised is {wanted[name]!r}"


def _noise(promise: Promise, solver: SeenSolver) -> Iterator[str]:
    """The first sample that the UNet got, bit by bit."""
    found = solver.first_input
    if found is None:
        yield "noise: the UNet was never called"
        return
    scheduler = promise.scheduler
    sample = promise.noise.to(found.device) * scheduler.init_noise_sigma
    wanted = scheduler.scale_model_input(sample, scheduler.timesteps[0]).to(promise.noise.dtype)
    yield from _same("noise: the values of the UNet's first sample", found, wanted)
    _rewind(scheduler)


def _loop(promise: Promise, solver: SeenSolver) -> Iterator[str]:
    """diffusers' own loop: timesteps, sigmas, and every step taken again by the promised solver."""
    if not solver.steps:
        yield "solver: no step was seen"
        return
    scheduler = promise.scheduler
    timesteps = torch.stack([step.timestep for step in solver.steps])
    differing = [*_same("solver: the timesteps", timesteps, scheduler.timesteps)]
    if solver.sigmas is None:
        differing.append("solver: it has no sigmas")
    else:
        differing += _same("solver: the sigmas", solver.sigmas, scheduler.sigmas)
    yield from differing or _steps(scheduler, solver.steps)


def _steps(scheduler: Any, steps: list[Step]) -> Iterator[str]:
    """The first step that moved the latents otherwise, or whose latents were moved before it."""
    _rewind(scheduler)
    previous: Tensor | None = None
    for index, step in enumerate(steps):
        if previous is not None and not _equal(step.before, previous):
            yield f"solver: the latents were changed between the steps {index - 1} and {index}"
            return
        moved = _again(scheduler, index, step)
        complaint = [*_same(f"solver: the latents after step {index}", step.after, moved)]
        if complaint:
            yield from complaint
            return
        previous = step.after


def _again(scheduler: Any, index: int, step: Step) -> Tensor:
    more: dict[str, Any] = {}
    if step.generator is not None and "generator" in inspect.signature(scheduler.step).parameters:
        more["generator"] = torch.Generator("cpu")
        more["generator"].set_state(step.generator)
    timestep = scheduler.timesteps[index]
    with portable_noise():
        moved: Tensor = scheduler.step(
            step.prediction.clone(), timestep, step.before.clone(), return_dict=False, **more
        )[0]
    return moved


def _rewind(scheduler: Any) -> None:
    """To before its first step."""
    scheduler.set_timesteps(len(scheduler.timesteps))
    scheduler.set_begin_index(0)


def _table(promise: Promise, solver: SeenSolver) -> Iterator[str]:
    """The engine's: timesteps as the UNet takes them, float32, and its factors."""
    times, factors = solver.table or (torch.empty(0), torch.empty(0))
    wanted = promise.scheduler.timesteps.to(torch.float32)
    yield from _same("solver: the timesteps", times, wanted)
    if promise.factors is None:
        yield "solver: the engine generated, and the level promises diffusers' own loop"
        return
    if factors.shape != promise.factors.shape:
        yield from _same("solver: the factors", factors, promise.factors)
        return
    for column, name in enumerate(FACTORS):
        what = f"solver: the factors of {name}"
        yield from _same(what, factors[:, column], promise.factors[:, column])


def _same(what: str, found: Tensor, wanted: Tensor) -> Iterator[str]:
    """Nothing if dtype, shape and every bit are the same, else a sentence."""
    wanted = wanted.to(found.device)
    if found.dtype != wanted.dtype:
        yield f"{what} are {_name(found.dtype)}, promised is {_name(wanted.dtype)}"
    elif found.shape != wanted.shape:
        yield f"{what} have the shape {tuple(found.shape)}, promised is {tuple(wanted.shape)}"
    elif not _equal(found, wanted):
        differing = (_bits(found) != _bits(wanted)).any(dim=1)
        first = int(differing.nonzero()[0])
        values = (float(one.reshape(-1)[first]) for one in (found, wanted))
        here, there = (f"{value:.9g}" for value in values)
        yield (
            f"{what} differ in {int(differing.sum())} of {found.numel()} values: number {first} "
            f"is {here}, promised is {there}"
        )


def _equal(one: Tensor, other: Tensor) -> bool:
    same_kind = one.dtype == other.dtype and one.shape == other.shape
    return same_kind and torch.equal(_bits(one), _bits(other))


def _bits(values: Tensor) -> Tensor:
    """The bytes of each value, (values, bytes): a NaN equals itself there."""
    flat = values.contiguous().reshape(-1)
    return flat.view(torch.uint8).reshape(flat.numel(), -1)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
