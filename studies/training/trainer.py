"""Runs one stage of training: optimizer, moving average, CUDA graph, checkpoints, time budget."""

import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sdopt.engine import cuda_graphs
from sdopt.util.files import write_whole
from studies.training.stages import Stage

_WARMUP_STEPS = 200
_FINAL_RATE = 0.01
_GRADIENT_NORM = 1.0
_CAPTURE_AFTER = 3
_TIMED_STEPS = 20
_REPORT_EVERY = 100


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long a stage may run and how often it is saved."""

    steps: int
    seconds: float | None
    """Fewer steps than `steps` are planned if the first ones show that these would take longer."""
    checkpoint: Path
    compiled: bool = False
    save_every_s: float = 90.0


class Trainer:
    """One stage from its checkpoint, or from the start, to its last step."""

    def __init__(self, stage: Stage, schedule: Schedule, seed: int, device: str) -> None:
        self.stage, self.schedule, self.device = stage, schedule, device
        self.loss = torch.compile(stage.loss, dynamic=False) if schedule.compiled else stage.loss
        self.step_number, self.steps = 0, schedule.steps
        self.parameters = [p for p in stage.trained.parameters() if p.requires_grad]
        self.rate = torch.zeros((), device=device)
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=self.rate if device == "cuda" else 0.0,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=True,
            capturable=device == "cuda",
        )
        self.average = [p.detach().clone() for p in self.parameters]
        self.loss_sum = torch.zeros((), device=device)
        self.unplanned_s = schedule.seconds
        if schedule.checkpoint.exists():
            self._load()
        torch.manual_seed(seed + 1000003 * self.step_number)

    def run(self) -> None:
        """Trains to the last step, then puts the averaged weights into the modules."""
        started = last_save = time.monotonic()
        if self.step_number < self.steps:
            step = self._prepared_step()
            bar = tqdm(total=self.steps, initial=self.step_number, desc=self.stage.name)
            while self.step_number < self.steps:
                self._one(step, bar)
                if self.unplanned_s is not None and self.step_number % _TIMED_STEPS == 0:
                    self._plan(step, bar, started + self.unplanned_s)
                if time.monotonic() - last_save > self.schedule.save_every_s:
                    self.save()
                    last_save = time.monotonic()
            bar.close()
            self.save()
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.data.copy_(average)

    def save(self) -> None:
        """Writes the checkpoint whole: under a temporary name, then renamed."""
        state = {
            "step": self.step_number,
            "steps": self.steps,
            "weights": self.stage.trained.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        save_atomically(state, self.schedule.checkpoint)

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self.schedule.checkpoint, map_location=self.device)
        # The number of steps was planned when the stage began.
        self.step_number, self.steps, self.unplanned_s = state["step"], state["steps"], None
        self.stage.trained.load_state_dict(state["weights"])
        self.average = list(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.device == "cuda":
            # The captured graph reads this very tensor; loading has replaced it by a copy.
            self.optimizer.param_groups[0]["lr"] = self.rate

    def _prepared_step(self) -> Callable[[], None]:
        if self.device != "cuda":
            return self._step
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_CAPTURE_AFTER):
                self._set_rate()
                self._step()
                self.step_number += 1
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        # One launch per step: run one by one, the kernels wait for the host most of the time.
        with cuda_graphs.capturing(graph):
            self._step()
        return graph.replay

    def _step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            loss = self.loss(*self.stage.draw())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters, _GRADIENT_NORM, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            weights = [parameter.detach() for parameter in self.parameters]
            torch._foreach_lerp_(self.average, weights, 1 - self.stage.ema_decay)
        self.loss_sum += loss.detach()

    def _one(self, step: Callable[[], None], bar: "tqdm[Any]") -> None:
        self._set_rate()
        step()
        self.step_number += 1
        if self.step_number % _REPORT_EVERY == 0 or self.step_number == self.steps:
            done = self.step_number - bar.n
            bar.update(done)
            bar.set_postfix(loss=f"{self.loss_sum.item() / done:.4f}")
            self.loss_sum.zero_()

    def _set_rate(self) -> None:
        rate = self.stage.learning_rate * rate_factor(self.step_number, self.steps)
        if self.device == "cuda":
            self.rate.fill_(rate)
        else:
            self.optimizer.param_groups[0]["lr"] = rate

    def _plan(self, step: Callable[[], None], bar: "tqdm[Any]", deadline: float) -> None:
        """Sets the number of steps that fit the time left, from the time of the next few."""
        self._synchronize()
        before = time.monotonic()
        for _ in range(_TIMED_STEPS):
            self._one(step, bar)
        self._synchronize()
        now = time.monotonic()
        step_s = (now - before) / _TIMED_STEPS
        left = int((deadline - now) / step_s)
        self.steps = min(self.steps, self.step_number + max(left, 1))
        self.unplanned_s = None
        bar.total = self.steps
        bar.write(f"{self.stage.name}: {1000 * step_s:.2f} ms a step, {self.steps} steps")

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to 1 %."""
    warmup = min(1.0, (step + 1) / _WARMUP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return warmup * (_FINAL_RATE + (1 - _FINAL_RATE) * cosine)


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """A reader finds the old file or the new one, never half of one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getvalue())


def freeze(*modules: torch.nn.Module) -> None:
    """No more gradients, and the behaviour of inference."""
    for module in modules:
        module.eval().requires_grad_(False)
