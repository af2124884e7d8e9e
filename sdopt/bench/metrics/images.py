"""Likeness of images: SSIM to three kinds of others, and the worst block of all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdopt.bench.metrics.metric import (
    Better,
    Column,
    Fixed,
    Measured,
    Metric,
    Row,
    Seen,
    Subject,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_PX = 4
"""The side of the blocks whose differences are looked at one by one."""
BLOCK_DRIFT_LIMIT = 0.1
"""Of the full range. Float16 on a GPU differs from float32 on a CPU by 0.034 at most, in five
images of fifteen levels; a white spot of one block by 0.14 to 0.9."""
ACCEPT = "{again} --sdopt-accept  # if meant"
ACCEPT_AND_MEASURE = "{again} --sdopt-accept, then python -m sdopt.bench.stored.limits  # if meant"


def ssim(image: NDArray[Any], other: NDArray[Any]) -> Seen:
    """SSIM of two images: 1 is equal.

    With scikit-image's defaults (a uniform window of 7 pixels, averaged over the channels), as in
    Wang et al. 2004. Raises ValueError for images of different shapes.
    """
    from skimage.metrics import structural_similarity

    if image.shape != other.shape:
        raise ValueError(f"images of different shapes: {image.shape} and {other.shape}")
    return Seen(float(structural_similarity(image, other, channel_axis=2, data_range=255)))


def worst_block(image: NDArray[Any], other: NDArray[Any]) -> Seen:
    """The largest mean absolute difference of any BLOCK_PX x BLOCK_PX pixels, from 0 to 1.

    A spot that the mean SSIM of a large image does not show; and where that block begins.
    """
    import numpy as np

    apart = np.abs(image.astype(np.float64) - other.astype(np.float64)).mean(axis=2) / 255
    side = min(BLOCK_PX, *apart.shape)
    windows = np.lib.stride_tricks.sliding_window_view(apart, (side, side))
    blocks = windows.mean(axis=(2, 3))
    row, column = divmod(int(blocks.argmax()), blocks.shape[1])
    return Seen(float(blocks[row, column]), f"column {column}, row {row}")


def _other_noise(row: Row) -> bool:
    """Whether the reference's sampler draws other noise, so that the cost says nothing."""
    return not row.get("cost_is_comparable", True)


SSIM_DRIFT = Metric(
    name="ssim_drift",
    about="SSIM of the worst prompt's image to the level's own stored one",
    of=Subject.STORED,
    better=Better.HIGHER,
    least=-1.0,
    most=1.0,
    compare=ssim,
    # What differs between machines is a handful of pixels that round the other way, which of them
    # is luck: the largest difference of any level counts for all, three times it for machines that
    # nobody has tried. Those that made the very same pixels prove no spread of exactly 0.
    rule=Measured(kind="drift", margin=3.0, perfect=1.0, least=1e-4, default=0.99),
    what="worst of {count} prompts: {prompt}",
    remedy=ACCEPT,
    columns=(Column(heading="drift", form=".6f", place=90),),
)
BLOCK_DRIFT = Metric(
    name="block_drift",
    about=(
        "mean difference of the worst block of 4 x 4 pixels, which a mean over the image hides, as "
        "a share of the full range"
    ),
    of=Subject.STORED,
    compare=worst_block,
    rule=Fixed(by_device={"cpu": BLOCK_DRIFT_LIMIT, "cuda": BLOCK_DRIFT_LIMIT}),
    what="mean difference of the worst block, at {where} of {prompt}",
    remedy=ACCEPT,
)
SSIM_COST = Metric(
    name="ssim_cost",
    about="mean SSIM over the prompts to the level's reference, if the two are comparable",
    of=Subject.REFERENCE,
    better=Better.HIGHER,
    least=-1.0,
    most=1.0,
    compare=ssim,
    rule=Measured(kind="cost", margin=0.1, perfect=1.0, above=-1.0),
    what="mean of {count} prompts against {other}",
    remedy=ACCEPT_AND_MEASURE,
    columns=(Column(heading="cost", form=".4f", place=100, in_parentheses=_other_noise),),
)
SSIM_TRUTH = Metric(
    name="ssim_ground_truth",
    about=(
        "mean SSIM over the prompts to the ground truth of their captions, for captions of the "
        "miniature"
    ),
    of=Subject.GROUND_TRUTH,
    better=Better.HIGHER,
    least=-1.0,
    most=1.0,
    compare=ssim,
    rule=Measured(kind="ground_truth", margin=0.1, perfect=1.0, above=-1.0),
    what="mean of {count} prompts against {other}",
    remedy=ACCEPT_AND_MEASURE,
    columns=(Column(heading="ground truth", form=".4f", place=110),),
)
METRICS = (SSIM_DRIFT, BLOCK_DRIFT, SSIM_COST, SSIM_TRUTH)
