"""The solver's six numbers a step move a sample as diffusers' own scheduler does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from references import error, random
from torch import Tensor

from sdopt.engine import ops
from sdopt.engine.solver import GUIDANCE, LINEAR, solver_for
from sdopt.errors import SdoptError

SD15 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "as Stable Diffusion 1.5": {"steps_offset": 1},
    "leading": {"timestep_spacing": "leading", "steps_offset": 1},
    "trailing": {"timestep_spacing": "trailing"},
    "first order at the end": {"lower_order_final": True},
    "second order to the end": {"lower_order_final": False},
    "euler at the end": {"euler_at_final": True},
    "ends at the smallest sigma": {"final_sigmas_type": "sigma_min"},
    "karras": {"use_karras_sigmas": True},
    "log-uniform": {"use_lu_lambdas": True},
    "heun": {"solver_type": "heun"},
    "v-prediction": {"prediction_type": "v_prediction"},
    "sample": {"prediction_type": "sample"},
    "linear betas": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
}
EXACT = 5e-5
"""Relative error: diffusers rounds its own factors to float32 at each step."""


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def scheduler_of(config: str) -> Any:
    return DPMSolverMultistepScheduler(**{**SD15, **CONFIGS[config]})


def noise_at(sample: Tensor, step: int) -> Tensor:
    """A stand-in for a UNet: it depends on the sample, and is another one at each step."""
    return torch.tanh(sample) * (0.5 + 0.1 * (step % 3)) + 0.1 * random(*sample.shape, seed=step)


def by_diffusers(scheduler: Any, sample: Tensor, steps: int) -> list[Tensor]:
    """The sample after each step."""
    scheduler.set_timesteps(steps)
    found = []
    for step, timestep in enumerate(scheduler.timesteps):
        sample = scheduler.step(noise_at(sample, step), timestep, sample).prev_sample
        found.append(sample)
    return found


def by_factors(scheduler: Any, sample: Tensor, steps: int) -> list[Tensor]:
    """The same by the engine."""
    solver = solver_for(scheduler, steps)
    sample, before = sample.clone(), torch.zeros_like(sample)
    found = []
    for step in range(steps):
        ops.solver_step(noise_at(sample, step), sample, before, solver.factors[step], 1)
        found.append(sample.clone())
    return found


def assert_same(config: str, steps: int) -> None:
    start = random(1, 4, 4, 4)
    wanted = by_diffusers(scheduler_of(config), start, steps)
    found = by_factors(scheduler_of(config), start, steps)
    worst = max(error(f, w) for f, w in zip(found, wanted, strict=True))
    assert worst < EXACT, f"{worst:.2g}"


@pytest.mark.parametrize("steps", [*range(1, 31), 50, 100, 250])
def test_any_number_of_steps(steps: int) -> None:
    assert_same("as Stable Diffusion 1.5", steps)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 14, 15, 16, 20, 30])
@pytest.mark.parametrize("config", CONFIGS)
def test_any_configuration(config: str, steps: int) -> None:
    assert_same(config, steps)


@pytest.mark.parametrize("steps", [1, 20])
def test_timesteps_are_the_schedulers(steps: int) -> None:
    scheduler = scheduler_of("leading")
    scheduler.set_timesteps(steps)
    assert torch.equal(solver_for(scheduler, steps).timesteps, scheduler.timesteps)


def test_the_scheduler_is_left_as_it_was() -> None:
    scheduler = scheduler_of("trailing")
    scheduler.set_timesteps(7)
    solver_for(scheduler, 20)
    assert len(scheduler.timesteps) == 7
    assert (scheduler.step_index, scheduler.lower_order_nums) == (None, 0)
    assert scheduler.model_outputs == [None, None]


def test_guidance_has_a_column_that_is_left_empty() -> None:
    factors = solver_for(scheduler_of("leading"), 20).factors
    assert (factors.shape, factors.dtype) == ((20, 6), torch.float32)
    assert torch.equal(factors[:, GUIDANCE], torch.zeros(20))
    assert bool(torch.isfinite(factors).all())


def test_the_first_step_looks_back_to_nothing() -> None:
    factors = solver_for(scheduler_of("leading"), 20).factors
    assert factors[0, 5] == 0
    assert bool((factors[1:-1, 5] != 0).all())


OTHERWISE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "thresholding": True}


@pytest.mark.parametrize("option", LINEAR)
def test_what_is_not_six_numbers_a_step_is_refused_by_name(option: str) -> None:
    scheduler = DPMSolverMultistepScheduler(**{**SD15, option: OTHERWISE[option]})
    with pytest.raises(
        SdoptError, match=f"{option}=.*, the scheduler has {re.escape(repr(OTHERWISE[option]))}"
    ):
        solver_for(scheduler, 20)
