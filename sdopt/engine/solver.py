"""DPM-Solver++ as six numbers a step, read off the diffusers scheduler itself.

Each of its steps is linear in the sample, the predicted noise and the estimate of the step before.
So the scheduler is run once per number of steps, on the host, on the three unit vectors.
Source: https://arxiv.org/abs/2211.01095, as diffusers' DPMSolverMultistepScheduler implements it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdopt.errors import SdoptError

GUIDANCE = 0
"""The column of a table of factors that holds the guidance scale."""


LINEAR: Mapping[str, Any] = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "thresholding": False,
}
"""The options of a DPMSolverMultistepScheduler that make each step linear."""


@dataclass(frozen=True, kw_only=True)
class Solver:
    """What a number of steps needs: timesteps, and factors of shape (steps, 6), float32.

    With predicted noise e, sample x and the estimate b of the step before (columns in brackets):
    estimate = [1] * x + [2] * e; x = [3] * x + [4] * estimate + [5] * b.
    """

    timesteps: Tensor
    factors: Tensor


def solver_for(scheduler: Any, steps: int) -> Solver:
    """The solver of that many steps with this scheduler's configuration.

    Raises SdoptError for one whose steps are not linear or look further back.
    """
    for option, value in LINEAR.items():
        if scheduler.config[option] != value:
            raise SdoptError(
                f"the engine draws with {option}={value!r}, the scheduler has "
                f"{scheduler.config[option]!r}; use a level without the engine, such as 'final'"
            )
    own = type(scheduler).from_config(scheduler.config)
    own.set_timesteps(steps)
    own.set_begin_index(0)
    sample, noise, before = torch.eye(3, dtype=torch.float32)
    rows = []
    for timestep in own.timesteps:
        own.model_outputs = [None] * (own.config.solver_order - 1) + [before.clone()]
        moved = own.step(noise, timestep, sample, return_dict=False)[0]
        estimate = own.model_outputs[-1]
        # What is left of x' after the estimate's share is the sample's own.
        of_estimate = _ratio(moved, estimate, sample, noise)
        rest = moved - of_estimate * estimate
        rows.append([0.0, *estimate[:2].tolist(), float(rest[0]), of_estimate, float(moved[2])])
    return Solver(timesteps=own.timesteps, factors=torch.tensor(rows, dtype=torch.float32))


def _ratio(moved: Tensor, estimate: Tensor, sample: Tensor, noise: Tensor) -> float:
    """The estimate's factor: the noise reaches the result only through it."""
    return float(moved @ noise) / float(estimate @ noise)
