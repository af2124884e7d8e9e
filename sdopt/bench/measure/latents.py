"""Final latents, which the decoder gets: taken while an image is generated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdopt.pipelines.workload import Request, generate
from sdopt.util.replaced import replaced

if TYPE_CHECKING:
    from torch import Tensor

    from sdopt.pipelines.pipeline import LevelPipeline

Latents = Mapping[str, NDArray[np.float32]]
"""Final latents by prompt name, each of shape (4, height / 8, width / 8)."""
Doubles = Mapping[str, NDArray[np.float64]]
"""The same generated in float64, see `sdopt.bench.measure.double`."""


@dataclass(frozen=True, kw_only=True)
class ImageAndLatents:
    """An image (height, width, 3) from 0 to 1, and what was decoded to it, both float32."""

    image: NDArray[np.float32]
    latents: NDArray[np.float32]


def generate_with_latents(pipeline: LevelPipeline, request: Request) -> ImageAndLatents:
    """The request's image by the pipeline as it is, and its latents: nothing runs twice for them.

    The engine keeps them beside the image, since on a GPU its decoder is only called when a graph
    is captured; elsewhere they are what `vae.decode` was given.
    """
    if pipeline.engine is not None:
        image = generate(pipeline, request)
        return ImageAndLatents(image=image, latents=_first(pipeline.engine.latents))
    with _given(pipeline.vae, "decode") as given:
        image = generate(pipeline, request)
    return ImageAndLatents(image=image, latents=_first(given[-1]))


def _first(latents: Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = latents[0].detach().float().cpu().contiguous().numpy()
    return values


@contextmanager
def _given(owner: Any, method: str) -> Iterator[list[Any]]:
    """The first argument of each call of the method."""
    original = getattr(owner, method)
    given: list[Any] = []

    def noted(first: Any, *args: Any, **kwargs: Any) -> Any:
        given.append(first)
        return original(first, *args, **kwargs)

    with replaced(owner, method, noted):
        yield given


def latent_faults(latents: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """The prompts whose latents are worthless, with the reason."""
    return {
        name: "NaN or infinite latents"
        for name, values in latents.items()
        if not np.isfinite(values).all()
    }
