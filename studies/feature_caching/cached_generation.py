"""Generates captions with some of the UNet's steps shallow, as `split` beside it splits it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from sdopt.bench.measure.scoring import Images
from sdopt.levels import guided_steps
from sdopt.miniature import GUIDANCE_SCALE
from studies.feature_caching.split import full_step, shallow_step
from studies.miniature_quality.studio import CUTOFF, Studio, to_images


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which of `steps` are full, and what the others reuse.

    `layers` is the boundary, see `full_step`; with 0 a step reuses the predicted noise itself and
    evaluates nothing. `slope` extrapolates what is reused: it is multiplied with the straight line
    through the last two full steps, over the timestep; 0 reuses the last one as it is.
    """

    full: tuple[int, ...]
    steps: int = 20
    layers: int = 1
    slope: float = 0.0


class Memory:
    """What the last two full steps left, and what it would be at a later timestep."""

    def __init__(self, slope: float) -> None:
        self.slope = slope
        self.kept: list[tuple[float, Tensor]] = []

    def store(self, at: float, value: Tensor) -> None:
        """Keeps what a full step left, besides that of the step before."""
        self.kept = [*self.kept[-1:], (at, value)]

    def recall(self, at: float, samples: int) -> Tensor:
        """For the last `samples` of the batch: after the cutoff, those with the caption."""
        last, value = self.kept[-1]
        value = value[-samples:]
        if self.slope and len(self.kept) == 2:
            before, older = self.kept[0]
            step = self.slope * (at - last) / (last - before)
            value = value + step * (value - older[-samples:])
        return value


class CachedStudio:
    """The miniature with DPM-Solver++ 2M, the CFG cutoff and the Tiny VAE: the level `final`."""

    def __init__(self, studio: Studio, scale: float = GUIDANCE_SCALE) -> None:
        self.studio, self.unet, self.scale = studio, studio.pipeline.unet, scale

    @torch.no_grad()
    def generate(self, captions: list[str], seeds: list[int], plan: Plan) -> Images:
        """N x 128 x 128 x 3, 0 to 255, decoded by the Tiny VAE."""
        size = self.studio.batch
        parts = [
            self._latents(captions[i : i + size], seeds[i : i + size], plan)
            for i in range(0, len(captions), size)
        ]
        return to_images(self.studio.tiny_vae, torch.cat(parts))

    def _latents(self, captions: list[str], seeds: list[int], plan: Plan) -> Tensor:
        scheduler, memory = self._scheduler(plan.steps), Memory(plan.slope)
        text, latents = self._text(captions), _noise(seeds, self.unet)
        guided = guided_steps(CUTOFF, plan.steps)
        for index, timestep in enumerate(scheduler.timesteps):
            if index == guided:
                text = text.chunk(2)[1]
            sample = torch.cat([latents, latents]) if index < guided else latents
            noise = self._noise_of(sample, timestep, text, memory, plan, index in plan.full)
            if index < guided:
                without, with_caption = noise.chunk(2)
                noise = without + self.scale * (with_caption - without)
            latents = scheduler.step(noise, timestep, latents, return_dict=False)[0]
        return latents

    def _noise_of(
        self, sample: Tensor, timestep: Tensor, text: Tensor, memory: Memory, plan: Plan, full: bool
    ) -> Tensor:
        at, layers = float(timestep), plan.layers
        if full:
            noise, features = full_step(self.unet, sample, timestep, text, layers=max(layers, 1))
            memory.store(at, features if layers else noise)
            return noise
        reused = memory.recall(at, len(sample))
        if not layers:
            return reused
        return shallow_step(self.unet, sample, timestep, text, reused, layers=layers)

    def _scheduler(self, steps: int) -> Any:
        scheduler = DPMSolverMultistepScheduler.from_config(
            self.studio.config, algorithm_type="dpmsolver++", solver_order=2
        )
        scheduler.set_timesteps(steps)
        scheduler.set_begin_index(0)
        return scheduler

    def _text(self, captions: list[str]) -> Tensor:
        """The embeddings of as many empty captions, then those of the captions."""
        pipeline = self.studio.pipeline
        given, empty = pipeline.encode_prompt(captions, self.studio.device, 1, True)
        return torch.cat([empty, given])


def _noise(seeds: list[int], unet: Any) -> Tensor:
    """ImageAndLatents on the CPU for each image by itself, as a diffusers pipeline does."""
    side = unet.config.sample_size
    shape = (1, unet.config.in_channels, side, side)
    generated = [
        torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds
    ]
    return torch.cat(generated).to(unet.device)
