"""The same request generated twice in one process: every bit has to be the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdopt.bench.measure.latents import ImageAndLatents
from sdopt.bench.metrics.latents import relative_distance


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """In what two images of one request differ: how many values, and by how much.

    `latents_apart` is the relative L2 distance, `pixels_apart` the largest difference of a pixel
    from 0 to 1. Values are compared by their bits: a NaN is equal to itself, 0 is not to -0.
    """

    request: str
    latents_differing: int
    latents_apart: float
    pixels_differing: int
    pixels_apart: float

    @property
    def is_exact(self) -> bool:
        """Whether every bit is the same."""
        return not self.latents_differing and not self.pixels_differing

    def __str__(self) -> str:
        if self.is_exact:
            return f"{self.request} generated twice: every bit of latents and image is the same"
        return (
            f"{self.request} generated twice: {self.latents_differing} values of latents differ "
            f"(relative L2 {self.latents_apart:.3g}), {self.pixels_differing} of the image (by "
            f"{self.pixels_apart:.3g} of 1 at most)"
        )


def repeat_of(request: str, first: ImageAndLatents, again: ImageAndLatents) -> Repeat:
    """Compare two images of the request of that name."""
    apart = np.abs(first.image.astype(np.float64) - again.image.astype(np.float64))
    return Repeat(
        request=request,
        latents_differing=_differing(first.latents, again.latents),
        latents_apart=relative_distance(again.latents, first.latents),
        pixels_differing=_differing(first.image, again.image),
        pixels_apart=float(np.nan_to_num(apart, nan=1.0).max()),
    )


def _differing(one: NDArray[np.float32], other: NDArray[np.float32]) -> int:
    return int((np.ascontiguousarray(one).view(np.uint32) != other.view(np.uint32)).sum())
