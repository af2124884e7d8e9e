"""Peak signal-to-noise ratio of images: shown beside SSIM, never judged."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sdopt.bench.metrics.metric import Better, Column, Metric, Seen, Shown, Subject

if TYPE_CHECKING:
    from numpy.typing import NDArray

PSNR_CAP_DB = 100.0
"""Stands for the infinite PSNR of equal images, which JSON cannot hold."""
RULE = Shown(
    "healthy GPUs are as far apart in it as a fault: their stored runs lie between 42.9 dB and "
    "equal, a noise of one grey level at 48; SSIM, the worst block and the latents have limits"
)


def psnr(image: NDArray[Any], other: NDArray[Any]) -> Seen:
    """10 log10(255^2 / mean squared error) in dB of two uint8 images, at most PSNR_CAP_DB."""
    import numpy as np

    error = float(np.square(image.astype(np.float64) - other).mean())
    return Seen(min(10 * math.log10(255**2 / error), PSNR_CAP_DB) if error else PSNR_CAP_DB)


def _psnr(name: str, of: Subject, about: str, *columns: Column) -> Metric:
    return Metric(
        name=name,
        about=about,
        unit="dB",
        of=of,
        better=Better.HIGHER,
        least=-math.inf,
        compare=psnr,
        rule=RULE,
        columns=columns,
    )


METRICS = (
    _psnr(
        "psnr_drift_db",
        Subject.STORED,
        "PSNR of the worst prompt's image to the level's own stored one",
        Column(heading="PSNR dB", form=".1f", place=95, optional=True),
    ),
    _psnr(
        "psnr_cost_db",
        Subject.REFERENCE,
        "mean PSNR over the prompts to the level's reference",
    ),
    _psnr(
        "psnr_ground_truth_db",
        Subject.GROUND_TRUTH,
        "mean PSNR over the prompts to the ground truth",
    ),
)
