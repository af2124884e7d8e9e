"""Weights laid out anew, so that several products become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def joined_projections(projections: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """Linear layers of one shape and the same input as one: weight (N, K), bias (N,) or None.

    The layers' own become views of the joined ones, which so stay the module's.
    """
    return _joined(projections, "weight"), (
        None if projections[0].bias is None else _joined(projections, "bias")
    )


def merged_products(first: Any, second: Any) -> tuple[Tensor, Tensor]:
    """One product for second(x + first(y)): its weight (N, width + hidden) for x and y, its bias.

    `first` is a linear layer, `second` a 1 x 1 convolution. Computed in float64, which no setting
    such as TF32 shortens, and rounded once.
    """
    outer = second.weight.flatten(1).double()
    weight = torch.cat([outer, outer @ first.weight.double()], 1)
    bias = second.bias.double() + outer @ first.bias.double()
    return weight.to(first.weight.dtype), bias.to(first.weight.dtype)


def _joined(projections: Sequence[Any], name: str) -> Tensor:
    own = [getattr(projection, name) for projection in projections]
    joined = torch.cat(own)
    for projection, part, view in zip(projections, own, joined.chunk(len(own)), strict=True):
        if part.is_inference():  # its memory cannot be another one's without breaking it
            setattr(projection, name, nn.Parameter(view, requires_grad=False))
        else:
            part.data = view
    return joined
