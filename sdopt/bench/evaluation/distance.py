"""Frechet inception distance between a level's images and the reference's, where it can be had."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdopt.bench.evaluation.parts import PARTS, of_image, read_rows
from sdopt.bench.evaluation.places import Place

if TYPE_CHECKING:
    import torch

    from sdopt.bench.evaluation.pixels import Image

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
"""As torch-fidelity names them; torchmetrics takes its network from there."""


def fid_absence() -> str | None:
    """Why it cannot be computed here, or None; nothing is downloaded for it."""
    if lacking := [name for name in ("torchmetrics", "torch_fidelity") if not find_spec(name)]:
        return f"it needs {' and '.join(lacking)}, not installed"
    path = weights()
    return None if path.is_file() else f"there are no weights {path}, and none are downloaded"


def weights() -> Path:
    """Where torch-fidelity keeps Inception's weights."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS


def fid(place: Place, level: str, reference: str, device: torch.device) -> float:
    """The distance as in Heusel et al. 2017, of the images of all parts that are sound."""
    package = import_module("torchmetrics.image.fid")
    distance: Any = package.FrechetInceptionDistance(normalize=False).to(device)
    for name, is_real in ((reference, True), (level, False)):
        for images in batches(place, name):
            distance.update(images.to(device), real=is_real)
    return float(distance.compute())


def batches(place: Place, level: str) -> Iterator[torch.Tensor]:
    """A level's images, (n, 3, height, width), 0 to 255, part by part."""
    import numpy as np
    import torch

    from sdopt.bench.evaluation.pixels import from_png

    for name in place.files(f"{PARTS}/{level}"):
        file = f"{PARTS}/{level}/{name}"
        images: list[Image] = []
        for row in read_rows(place, file):
            with of_image(place, file, row.index):
                images += [] if row.fault else [from_png(row.png)]
        if images:
            yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
