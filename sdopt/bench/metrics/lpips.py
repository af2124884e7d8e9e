"""Learned perceptual distance of images (LPIPS), where its weights are already on the machine."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdopt.bench.metrics.metric import Column, Metric, Seen, Shown, Subject

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGES = ("torchmetrics", "lpips")
"""Either brings what LPIPS learned on top of AlexNet; AlexNet's own weights are torchvision's."""


def absence() -> str | None:
    """Why LPIPS cannot be computed here, or None; nothing is ever downloaded for it."""
    if not any(map(find_spec, PACKAGES)) or not find_spec("torchvision"):
        return "it needs torchvision and torchmetrics or lpips, which are not installed"
    try:
        path = backbone()
    except (ImportError, RuntimeError) as error:  # as of a torchvision for another torch
        return f"torchvision cannot be imported: {error}"
    return None if path.is_file() else f"there are no weights {path}, and none are downloaded"


def backbone() -> Path:
    """Where torchvision keeps AlexNet's weights, and downloads them to if they are not there."""
    import torch

    url: str = import_module("torchvision.models").AlexNet_Weights.IMAGENET1K_V1.url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


@cache
def model() -> Callable[[Any, Any], Any]:
    """LPIPS of two batches (1, 3, height, width) from 0 to 1, on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these packages call torchvision in the old way
        if find_spec("torchmetrics"):
            package = import_module("torchmetrics.image.lpip")
            likeness = package.LearnedPerceptualImagePatchSimilarity("alex", normalize=True)
            return lambda one, other: likeness(one, other)
        distance = import_module("lpips").LPIPS(net="alex", verbose=False).eval()
        return lambda one, other: distance(one, other, normalize=True)


def lpips(image: NDArray[Any], other: NDArray[Any]) -> Seen:
    """The distance of two uint8 images, 0 for equal ones, as in Zhang et al. 2018 (AlexNet)."""
    import torch

    one, another = (
        torch.from_numpy(each.copy()).permute(2, 0, 1)[None].float() / 255
        for each in (image, other)
    )
    with torch.no_grad():
        return Seen(float(model()(one, another)))


METRICS = (
    Metric(
        name="lpips_drift",
        about=(
            "LPIPS (AlexNet) of the worst prompt's image to the level's own stored one; only where "
            "torchvision, torchmetrics or lpips, and AlexNet's weights are there already"
        ),
        of=Subject.STORED,
        compare=lpips,
        rule=Shown("its spread between machines was not measured, and few have its weights"),
        columns=(Column(heading="LPIPS", form=".4f", place=97, optional=True),),
        missing=absence,
    ),
)
