"""Likeness of pictures: SSIM and PSNR of scikit-image, after a look for broken pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pictures = Mapping[str, NDArray[np.float32]]
"""Pictures by prompt name, as `workload.generate` makes them."""

BLOCK_PX = 4
"""The side of the blocks whose differences are looked at one by one."""
PSNR_CAP_DB = 100.0
"""Stands for the infinite PSNR of equal pictures, which JSON cannot hold."""


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How alike two pictures are: SSIM (1 is equal) and PSNR in dB (at most PSNR_CAP_DB).

    `worst_block` is the largest mean absolute difference of a block of BLOCK_PX x BLOCK_PX pixels,
    from 0 to 1: a spot that the mean SSIM of a large picture does not show. `worst_block_at` is the
    column and row where it begins.
    """

    ssim: float
    psnr_db: float
    worst_block: float = 0.0
    worst_block_at: tuple[int, int] = (0, 0)


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


def likeness(picture: NDArray[np.uint8], other: NDArray[np.uint8]) -> Likeness:
    """SSIM and PSNR of two RGB pictures of shape (height, width, 3), uint8.

    SSIM with scikit-image's defaults (a uniform window of 7 pixels, averaged over the channels), as
    in Wang et al. 2004. Raises ValueError for pictures of different shapes.
    """
    from skimage.metrics import mean_squared_error, structural_similarity

    if picture.shape != other.shape:
        raise ValueError(f"pictures of different shapes: {picture.shape} and {other.shape}")
    ssim = structural_similarity(picture, other, channel_axis=2, data_range=255)
    error = mean_squared_error(picture, other)
    psnr = 10 * np.log10(255.0**2 / error) if error > 0 else PSNR_CAP_DB
    block, place = worst_block(picture, other)
    return Likeness(
        ssim=float(ssim),
        psnr_db=float(min(psnr, PSNR_CAP_DB)),
        worst_block=block,
        worst_block_at=place,
    )


def worst_block(
    picture: NDArray[np.uint8], other: NDArray[np.uint8]
) -> tuple[float, tuple[int, int]]:
    """The largest mean absolute difference of any BLOCK_PX x BLOCK_PX pixels, from 0 to 1.

    And the column and row where that block begins.
    """
    apart = np.abs(picture.astype(np.float64) - other.astype(np.float64)).mean(axis=2) / 255
    side = min(BLOCK_PX, *apart.shape)
    windows = np.lib.stride_tricks.sliding_window_view(apart, (side, side))
    blocks = windows.mean(axis=(2, 3))
    row, column = divmod(int(blocks.argmax()), blocks.shape[1])
    return float(blocks[row, column]), (column, row)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Pictures against others, by prompt: how alike they are, or what makes them worthless."""

    likeness: dict[str, Likeness]
    faults: dict[str, str]

    @property
    def ssim(self) -> dict[str, float]:
        """SSIM by prompt."""
        return {name: value.ssim for name, value in self.likeness.items()}

    @property
    def worst_block(self) -> dict[str, float]:
        """The largest difference of a block by prompt."""
        return {name: value.worst_block for name, value in self.likeness.items()}

    @property
    def psnr_db(self) -> dict[str, float]:
        """PSNR in dB by prompt."""
        return {name: value.psnr_db for name, value in self.likeness.items()}


def compare(pictures: Pictures, others: Mapping[str, NDArray[np.uint8]]) -> Comparison:
    """Compare each picture with the other of the same prompt; `others` may hold fewer prompts.

    A picture that is NaN, black or constant is a fault and gets no likeness.
    """
    faults = picture_faults({name: pictures[name] for name in others})
    return Comparison(
        likeness={
            name: likeness(to_uint8(pictures[name]), other)
            for name, other in others.items()
            if name not in faults
        },
        faults=faults,
    )


def picture_faults(pictures: Pictures) -> dict[str, str]:
    """The prompts whose pictures are worthless, with the reason."""
    found = {name: picture_fault(picture) for name, picture in pictures.items()}
    return {name: what for name, what in found.items() if what}
