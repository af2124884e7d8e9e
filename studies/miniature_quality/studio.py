"""Generates captions with the miniature through a stock diffusers pipeline."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

from sdopt.bench.measure.scoring import Images
from sdopt.pipelines.cfg_cutoff import cutoff_callback

CUTOFF = 0.4


class Studio:
    """A pipeline, its two decoders, and batches of captions with fixed seeds."""

    def __init__(self, folder: Path, device: str, batch: int) -> None:
        pipeline: Any = diffusers.StableDiffusionPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline.to(device)
        self.tiny_vae: Any = diffusers.AutoencoderTiny.from_pretrained(folder / "tiny_vae")
        self.tiny_vae.to(device)
        self.vae = pipeline.vae
        self.config = pipeline.scheduler.config
        self.device, self.batch = device, batch

    def euler(self, captions: list[str], steps: int, scale: float) -> Images:
        """Images by Euler Ancestral: N x 128 x 128 x 3, 0 to 255."""
        scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(self.config)
        return to_images(self.vae, self._latents(captions, scheduler, steps, scale))

    def dpm(
        self, captions: list[str], steps: int, scale: float, cutoff: bool = False
    ) -> torch.Tensor:
        """Scaled latents by DPM-Solver++ 2M: N x 4 x 16 x 16."""
        scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
            self.config, algorithm_type="dpmsolver++", solver_order=2
        )
        return self._latents(captions, scheduler, steps, scale, cutoff)

    def _latents(
        self, captions: list[str], scheduler: Any, steps: int, scale: float, cutoff: bool = False
    ) -> torch.Tensor:
        self.pipeline.scheduler = scheduler
        batches = []
        for first in range(0, len(captions), self.batch):
            some = captions[first : first + self.batch]
            seeds = range(first, first + len(some))
            output = self.pipeline(
                some,
                num_inference_steps=steps,
                guidance_scale=scale,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                output_type="latent",
                callback_on_step_end=cutoff_callback(CUTOFF) if cutoff else None,
                callback_on_step_end_tensor_inputs=["prompt_embeds"],
            )
            batches.append(output.images)
        return torch.cat(batches)


@torch.no_grad()
def to_images(vae: Any, latents: torch.Tensor) -> Images:
    """N x 128 x 128 x 3, 0 to 255, decoded from scaled latents as the pipeline would."""
    decoded = [
        vae.decode(part / vae.config.scaling_factor).sample for part in torch.split(latents, 8)
    ]
    half = torch.cat(decoded).float().div(2).add(0.5).clamp(0, 1).mul(255).round()
    images: NDArray[np.uint8] = half.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return images


@torch.no_grad()
def to_latents(vae: Any, images: Images, device: str) -> torch.Tensor:
    """N x 4 x 16 x 16 scaled latents of N x 128 x 128 x 3 images, 0 to 255."""
    scaled = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    modes = [vae.encode(part).latent_dist.mode() for part in torch.split(scaled, 8)]
    scale: float = vae.config.scaling_factor
    return torch.cat(modes) * scale
