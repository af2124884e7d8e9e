"""DPM-Solver++ as six numbers a step, read off the diffusers scheduler itself.

Each of its steps is linear in the sample, the predicted noise and the estimate of the step before.
So the scheduler is run once per number of steps, on the host, on the three unit vectors.
Source: https://arxiv.org/abs/2211.01095, as diffusers' DPMSolverMultistepScheduler implements it.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdopt.engine.stock import is_stock, patched
from sdopt.engine.watch import class_content
from sdopt.errors import SdoptError

GUIDANCE = 0
"""The column of a table of factors that holds the guidance scale."""


LINEAR: Mapping[str, Any] = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "thresholding": False,
}
"""The options of a DPMSolverMultistepScheduler that make each step linear."""
SCHEDULER = "DPMSolverMultistepScheduler"
STATE = frozenset(
    {
        *("timesteps", "sigmas", "num_inference_steps", "model_outputs", "lower_order_nums"),
        *("_step_index", "_begin_index", "this_order", "_internal_dict"),
    }
)
"""Attributes of a scheduler that `set_timesteps` and `step` set; and its configuration."""


@dataclass(frozen=True, kw_only=True)
class Solver:
    """What a number of steps needs: timesteps, and factors of shape (steps, 6), float32.

    With predicted noise e, sample x and the estimate b of the step before (columns in brackets):
    estimate = [1] * x + [2] * e; x = [3] * x + [4] * estimate + [5] * b.
    """

    timesteps: Tensor
    factors: Tensor


class SolverTables:
    """A scheduler's timesteps and factors; `last` are those of the last image, on its device.

    Solvers are kept by their number of steps, until they are forgotten since the scheduler changed.
    """

    def __init__(self) -> None:
        self.last = (torch.empty(0), torch.empty(0))
        self._solvers: dict[int, Solver] = {}
        self._last_of: tuple[int, float, torch.device] | None = None

    def on(
        self, device: torch.device, scheduler: Any, steps: int, guidance_scale: float
    ) -> tuple[Tensor, Tensor]:
        """Timesteps and factors on the device."""
        key = (steps, guidance_scale, device)
        if self._last_of != key:
            solver = self.solver(scheduler, steps)
            factors = solver.factors.clone()
            factors[:, GUIDANCE] = guidance_scale
            self.last = (solver.timesteps.to(device, torch.float32), factors.to(device))
            self._last_of = key
        return self.last

    def solver(self, scheduler: Any, steps: int) -> Solver:
        """That of a number of steps, made the first time."""
        if steps not in self._solvers:
            self._solvers[steps] = solver_for(scheduler, steps)
        return self._solvers[steps]

    def forget(self) -> None:
        """The scheduler is another one now, or has other settings."""
        self._solvers.clear()
        self._last_of = None


def solver_for(scheduler: Any, steps: int) -> Solver:
    """The solver of that many steps with this scheduler's configuration.

    Raises SdoptError for one whose steps are not linear or look further back.
    """
    check_scheduler(scheduler)
    for option, value in LINEAR.items():
        found = getattr(scheduler.config, option)
        if found != value:
            raise SdoptError(
                f"the engine generates with {option}={value!r}, the scheduler has "
                f"{found!r}; use a level without the engine, such as 'final'"
            )
    own = _own(scheduler)
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


def settings_of(scheduler: Any) -> Hashable:
    """All that a scheduler's steps depend on, so that another one is noticed."""
    kind = type(scheduler)
    return (
        kind,
        *(tuple(class_content(vars(base)).values()) for base in kind.__mro__ if base is not object),
        # diffusers reads options as attributes, which somebody may have set beside the items.
        repr(
            sorted((str(k), getattr(scheduler.config, k, v)) for k, v in scheduler.config.items())
        ),
        *(
            (name, _content(value))
            for name, value in vars(scheduler).items()
            if name not in STATE and not callable(value)
        ),
    )


def check_scheduler(scheduler: Any) -> None:
    """Raise SdoptError for a scheduler whose steps the engine does not make."""
    kind = type(scheduler)
    patch = None if is_stock(kind) else patched(kind) or "methods of nobody's"
    if kind.__name__ != SCHEDULER or patch:
        what = kind.__name__ if kind.__name__ != SCHEDULER else f"one with {patch}"
        raise SdoptError(
            f"the engine computes a {SCHEDULER}, the pipeline has {what}; use a level without "
            "the engine, such as 'final'"
        )


def check_unpatched(scheduler: Any) -> None:
    """Raise SdoptError for methods that were put into a scheduler: the engine never calls them."""
    patched = [name for name, value in vars(scheduler).items() if callable(value)]
    if patched:
        raise SdoptError(
            f"the engine would leave out the {patched[0]} that was put into the scheduler; undo "
            "that, or use a level without the engine, such as 'final'"
        )


def _own(scheduler: Any) -> Any:
    """A copy, also of what was changed after it was made, without methods that were put in."""
    methods = [name for name, value in vars(scheduler).items() if callable(value)]
    own = copy.copy(scheduler)
    for name in methods:
        del vars(own)[name]
    return copy.deepcopy(own)


def _content(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return (value.shape, value.dtype, value.detach().cpu().contiguous().numpy().tobytes())
    return repr(value)


def _ratio(moved: Tensor, estimate: Tensor, sample: Tensor, noise: Tensor) -> float:
    """The estimate's factor: the noise reaches the result only through it."""
    return float(moved @ noise) / float(estimate @ noise)
