"""How far final latents are from the level's own stored ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdopt.bench.metrics.images import ACCEPT
from sdopt.bench.metrics.metric import Measured, Metric, Seen, Subject

if TYPE_CHECKING:
    from numpy.typing import NDArray

LATENT_MARGIN = 4.0
"""How many times the largest distance seen may pass, for machines nobody has tried; never more than
1, the distance to no latents at all."""
WHAT = "relative L2 of the final latents, worst of {count} prompts: {prompt}"


def relative_distance(values: NDArray[Any], others: NDArray[Any]) -> float:
    """The L2 norm of the difference over that of `others`; infinite where nothing is finite.

    Raises ValueError for arrays of different shapes.
    """
    import numpy as np

    if values.shape != others.shape:
        raise ValueError(f"latents of different shapes: {values.shape} and {others.shape}")
    if not np.isfinite(values).all():
        return float("inf")
    apart = np.linalg.norm(values.astype(np.float64) - others.astype(np.float64))
    length = np.linalg.norm(others.astype(np.float64))
    return float(apart / length) if length else float("inf" if apart else 0.0)


def distance(values: NDArray[Any], others: NDArray[Any]) -> Seen:
    """The relative L2 distance as a metric compares."""
    return Seen(relative_distance(values, others))


LATENT_DRIFT = Metric(
    name="latent_drift",
    about=(
        "final latents of the worst prompt, as the decoder gets them, against the level's own "
        "stored ones (relative L2)"
    ),
    of=Subject.LATENTS,
    compare=distance,
    # What may always pass is a few roundings of float32.
    rule=Measured(kind="latents", margin=LATENT_MARGIN, perfect=0.0, least=1e-6, default=0.02),
    what=WHAT,
    remedy=ACCEPT,
)
LATENT_DRIFT_FLOAT64 = Metric(
    name="latent_drift_float64",
    about=(
        "the same for the first prompt, generated in five steps in float64 by a copy of the "
        "level's modules, on a CPU"
    ),
    of=Subject.FLOAT64,
    compare=distance,
    # Two values of the engine's float32 sample that round the other way.
    rule=Measured(kind="float64", margin=LATENT_MARGIN, perfect=0.0, least=4e-9, default=1e-6),
    what=WHAT,
    remedy=ACCEPT,
)
METRICS = (LATENT_DRIFT, LATENT_DRIFT_FLOAT64)
