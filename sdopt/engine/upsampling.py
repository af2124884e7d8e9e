"""Nearest-neighbour doubling folded into the 3 x 3 convolution that follows it."""

from __future__ import annotations

import torch
from torch import Tensor

# A doubled image's neighbours fall on two of its pixels: at an even place the one before and the
# place's own, at an odd one its own and the one after. Which of three taps adds to which of two:
_TAPS = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))


def upsample_weights(weight: Tensor) -> Tensor:
    """Four 2 x 2 kernels, of shape (4 * N, 2, 2, C), that do what doubling and `weight` do.

    `weight` is (N, C, 3, 3). Kernel 2 * a + b makes the pixels (2 * h + a, 2 * w + b); it has 4
    taps where the doubled image's convolution has 9. Sums are of float64, which no setting such
    as TF32 shortens, and rounded once.
    """
    taps = torch.tensor(_TAPS, device=weight.device, dtype=torch.float64)
    folded = torch.einsum("auy,bvx,ncyx->abnuvc", taps, taps, weight.double())
    n, c = weight.shape[:2]
    return folded.reshape(4 * n, 2, 2, c).to(weight.dtype).contiguous()
