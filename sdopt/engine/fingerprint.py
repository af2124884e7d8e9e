"""See by some of their values that weights were written to where no version counter tells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SAMPLES = 64
"""Values of each weight that are looked at. A write that misses all of them is not seen."""
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Fingerprint:
    """SAMPLES evenly spaced values of each weight, by their bits, as they are now.

    `weight.data += x` and `weight.data.copy_(y)` change no version counter; peft's `fuse_lora` does
    the former. To look again is one gather over views of the weights, which a CUDA graph can hold.
    Of `whole` ones, which are few and small, all values are looked at.
    """

    def __init__(self, weights: Sequence[Tensor], whole: Sequence[Tensor] = ()) -> None:
        self._groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        samples = [*map(_samples, weights), *(one.reshape(-1) for one in whole)]
        for values in samples:
            if values.numel():
                bits = _BITS[values.element_size()]
                views = self._groups.setdefault((values.device, bits), [])
                views.append(values.detach().view(bits))
        self._then = self._now()

    def differences(self) -> list[Tensor]:
        """Whether any of the values is another one now: a bool for each kind and device."""
        return [(now != then).any() for now, then in zip(self._now(), self._then, strict=True)]

    def _now(self) -> list[Tensor]:
        return [torch.cat(views) for views in self._groups.values()]


@torch.no_grad()
def differing(fingerprints: Sequence[Fingerprint]) -> Tensor:
    """Whether any of them differs now: a bool, on the first one's device."""
    flags = [flag for one in fingerprints for flag in one.differences()]
    return torch.stack([flag.to(flags[0].device) for flag in flags]).any()


def _samples(weight: Tensor) -> Tensor:
    """A view of values that are evenly spaced in the weight's memory.

    The step is odd, so that they fall into all columns of matrices, whose widths are even.
    """
    size = weight.numel()
    if not _is_dense(weight):
        for _ in range(weight.dim() - 1):
            weight = weight[..., 0]
        return weight[:SAMPLES]
    count = min(SAMPLES, size)
    step = max(1, (size - 1) // max(1, count - 1))
    step -= step > 1 and step % 2 == 0
    return weight.as_strided((count,), (step,), weight.storage_offset())


def _is_dense(weight: Tensor) -> bool:
    """Whether its values fill one stretch of memory, in any order of its dimensions."""
    sides = zip(weight.shape, weight.stride(), strict=True)
    extent = 1 + sum((size - 1) * stride for size, stride in sides)
    return extent == weight.numel()
