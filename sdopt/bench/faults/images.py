"""Faults of images: what a broken sampler, decoder or post-processing does to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from sdopt.bench.faults.fault import Fault, Faulty
from sdopt.pipelines.cfg_cutoff import cutoff_callback
from sdopt.util.replaced import replaced

if TYPE_CHECKING:
    from sdopt.bench.faults.fault import Image, Inject
    from sdopt.pipelines.pipeline import LevelPipeline

NOISE = (0.004, 0.01, 0.03)
"""Standard deviations, of an image from 0 to 1: one grey level of 255, 2.5 and 8."""
CORNER_PX = 4
CHANGES_WORK = ("one step less", "cutoff two steps early", "cutoff two steps late")
"""Faults that change how often the UNet is evaluated."""


def image_faults() -> list[Fault]:
    """Every one; `final` or another level with a cutoff has to be the one that generates."""
    changes: dict[str, Inject] = {
        **{f"noise of {sigma}": _regenerated(_noise(sigma)) for sigma in NOISE},
        "blur": _regenerated(_blurred),
        "swapped channels": _regenerated(lambda image: image[..., ::-1].copy()),
        "black": _regenerated(np.zeros_like),
        "constant": _regenerated(lambda image: np.full_like(image, 0.5)),
        "NaN": _regenerated(lambda image: np.full_like(image, np.nan)),
        "bright corner": _regenerated(_bright_corner),
        "wrong seed": _other_seed,
        "one step less": _one_step_less,
        "guidance 0.5 lower": _guided(-0.5),
        "guidance 0.5 higher": _guided(0.5),
        "other timestep spacing": _other_spacing,
        "VAE scaling factor 5 % off": _other_scaling,
        "prompt halves swapped": _swapped_halves,
        "cutoff two steps early": _cutoff(-2),
        "cutoff two steps late": _cutoff(2),
    }
    control = Fault(group="image", name="none (control)", inject=nullcontext, caught_by=None)
    return [
        control,
        *(
            Fault(
                group="image",
                name=name,
                inject=inject,
                caught_by="block_drift" if name == "bright corner" else "ssim_drift",
                or_by="unet_evaluations" if name in CHANGES_WORK else None,
            )
            for name, inject in changes.items()
        ),
    ]


def _regenerated(change: Callable[[Image], Image]) -> Inject:
    return lambda pipeline: nullcontext(Faulty(pipeline, change=change))


def _noise(sigma: float) -> Callable[[Image], Image]:
    def noisy(image: Image) -> Image:
        noise = np.random.default_rng(0).normal(0, sigma, image.shape)
        return np.clip(image + noise, 0, 1).astype(image.dtype)

    return noisy


def _blurred(image: Image) -> Image:
    from scipy.ndimage import gaussian_filter

    blurred: Image = gaussian_filter(image, sigma=(0.5, 0.5, 0))
    return blurred


def _bright_corner(image: Image) -> Image:
    bright = image.copy()
    bright[:CORNER_PX, :CORNER_PX] = 1.0
    return bright


def _other_seed(pipeline: LevelPipeline) -> AbstractContextManager[Any]:
    import torch

    other = torch.Generator("cpu").manual_seed(10**6)
    return nullcontext(Faulty(pipeline, arguments={"generator": other}))


def _one_step_less(pipeline: LevelPipeline) -> AbstractContextManager[Any]:
    steps = pipeline.level.steps - 1
    return nullcontext(Faulty(pipeline, arguments={"num_inference_steps": steps}))


def _guided(by: float) -> Inject:
    def inject(pipeline: LevelPipeline) -> AbstractContextManager[Any]:
        scale = pipeline.source.guidance_scale + by
        return nullcontext(Faulty(pipeline, arguments={"guidance_scale": scale}))

    return inject


@contextmanager
def _other_spacing(pipeline: LevelPipeline) -> Iterator[Any]:
    before = pipeline.scheduler
    spacing = "leading" if before.config.timestep_spacing != "leading" else "trailing"
    changed = type(before).from_config(before.config, timestep_spacing=spacing)
    with replaced(pipeline, "scheduler", changed):
        yield pipeline


@contextmanager
def _other_scaling(pipeline: LevelPipeline) -> Iterator[Any]:
    before = pipeline.vae.config.scaling_factor
    pipeline.vae.register_to_config(scaling_factor=1.05 * before)
    try:
        yield pipeline
    finally:
        pipeline.vae.register_to_config(scaling_factor=before)


@contextmanager
def _swapped_halves(pipeline: LevelPipeline) -> Iterator[Any]:
    encode = pipeline.encode_prompt

    def swapped(*args: Any, **kwargs: Any) -> Any:
        positive, negative = encode(*args, **kwargs)
        return negative, positive

    with replaced(pipeline, "encode_prompt", swapped):
        yield pipeline


def _cutoff(by: int) -> Inject:
    def inject(pipeline: LevelPipeline) -> AbstractContextManager[Any]:
        fraction = (pipeline.level.cfg_cutoff or 0.0) + by / pipeline.level.steps
        return replaced(pipeline, "step_callback", cutoff_callback(fraction))

    return inject
