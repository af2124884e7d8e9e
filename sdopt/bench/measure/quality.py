"""Comparisons of pictures and of final latents, after a look for broken ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdopt.bench.measure.latents import Doubles, Latents, latent_faults
from sdopt.bench.metrics import metrics_of
from sdopt.bench.metrics.metric import Seen, Subject

Pictures = Mapping[str, NDArray[np.float32]]
"""Pictures by prompt name, as `workload.generate` makes them."""


def picture_fault(picture: NDArray[Any]) -> str | None:
    """What makes a picture worthless, or None: NaN, black or constant.

    `picture` is float from 0 to 1 or uint8, of shape (height, width, 3).
    """
    if not np.isfinite(picture).all():
        return "NaN or infinite pixels"
    if picture.max() <= 0:
        return "a black picture"
    if (picture == picture[0, 0]).all():
        return "a constant picture"
    return None


def to_uint8(picture: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Rounded to 0..255, as diffusers saves a picture."""
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What each metric of a subject says by prompt, or what makes a prompt's result worthless."""

    seen: Mapping[str, Mapping[str, Seen]]
    faults: Mapping[str, str]

    def values(self, metric: str) -> dict[str, float]:
        """A metric's value by prompt."""
        return {name: one.value for name, one in self.seen[metric].items()}


def compare(
    pictures: Pictures,
    others: Mapping[str, NDArray[np.uint8]],
    subject: Subject = Subject.STORED,
) -> Comparison:
    """Compare each picture with the other of the same prompt; `others` may hold fewer prompts.

    A picture that is NaN, black or constant is a fault and is not compared.
    """
    faults = picture_faults({name: pictures[name] for name in others})
    sound = {name: to_uint8(pictures[name]) for name in others if name not in faults}
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


def picture_faults(pictures: Pictures) -> dict[str, str]:
    """The prompts whose pictures are worthless, with the reason."""
    found = {name: picture_fault(picture) for name, picture in pictures.items()}
    return {name: what for name, what in found.items() if what}
