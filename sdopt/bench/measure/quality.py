"""Comparisons of images and of final latents, after a look for broken ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdopt.bench.measure.latents import Doubles, Latents, latent_faults
from sdopt.bench.metrics import metrics_of
from sdopt.bench.metrics.metric import Seen, Subject

Images = Mapping[str, NDArray[np.float32]]
"""Images by prompt name, as `workload.generate` makes them."""


def image_fault(image: NDArray[Any]) -> str | None:
    """What makes an image worthless, or None: NaN, black or constant.

    `image` is float from 0 to 1 or uint8, of shape (height, width, 3).
    """
    if not np.isfinite(image).all():
        return "NaN or infinite pixels"
    if image.max() <= 0:
        return "a black image"
    if (image == image[0, 0]).all():
        return "a constant image"
    return None


def to_uint8(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Rounded to 0..255, as diffusers saves an image."""
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What each metric of a subject says by prompt, or what makes a prompt's result worthless."""

    seen: Mapping[str, Mapping[str, Seen]]
    faults: Mapping[str, str]

    def values(self, metric: str) -> dict[str, float]:
        """A metric's value by prompt."""
        return {name: one.value for name, one in self.seen[metric].items()}


def compare(
    images: Images,
    others: Mapping[str, NDArray[np.uint8]],
    subject: Subject = Subject.STORED,
) -> Comparison:
    """Compare each image with the other of the same prompt; `others` may hold fewer prompts.

    An image that is NaN, black or constant is a fault and is not compared.
    """
    faults = image_faults({name: images[name] for name in others})
    sound = {name: to_uint8(images[name]) for name in others if name not in faults}
    return _compared(sound, others, subject, faults)


def compare_latents(
    latents: Latents | Doubles,
    stored: Mapping[str, NDArray[Any]],
    subject: Subject = Subject.LATENTS,
) -> Comparison:
    """The same of final latents, which are faults where they are not finite."""
    faults = latent_faults({name: latents[name] for name in stored})
    sound = {name: latents[name] for name in stored if name not in faults}
    return _compared(sound, stored, subject, faults)


def _compared(
    ours: Mapping[str, NDArray[Any]],
    others: Mapping[str, NDArray[Any]],
    subject: Subject,
    faults: Mapping[str, str],
) -> Comparison:
    seen = {
        metric.name: {name: metric.compare(one, others[name]) for name, one in ours.items()}
        for metric in metrics_of(subject)
        if metric.compare and not metric.absence
    }
    return Comparison(seen=seen, faults=faults)


def image_faults(images: Images) -> dict[str, str]:
    """The prompts whose images are worthless, with the reason."""
    found = {name: image_fault(image) for name, image in images.items()}
    return {name: what for name, what in found.items() if what}
