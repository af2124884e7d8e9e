"""Operands of products in float8 (e4m3): weights scaled by output channel, norms by a power of 2.

Products are summed in float32. What follows a norm needs no calibration: a norm's own weight and
bias say how large its output can be, and a floating-point format keeps its relative precision
however much room is left above. So one factor serves all prompts, and models that were trained on.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdopt.errors import BrokenFileError
from sdopt.util.files import cause

KIND = torch.float8_e4m3fn
LARGEST = 448.0
"""Of e4m3 (Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433)."""
DEVIATIONS = 32.0
"""How far from a norm's bias its output may be, in units of its weight, before it saturates."""
FLOAT8_KINDS = (
    "conv1", "conv2", "proj_in", "self-attention", "cross-attention", "feed-forward",
)  # fmt: skip
"""Products of norms' outputs, whose operands can be in float8; of the UNet's modules."""
RENEW = "install sdopt again, or make it anew with python -m studies.float8_products"
MOST_BITS = 64
"""A factor is 2 to the power of so many at most, which float32 can hold."""
CHOICE = Path(__file__).with_name("float8.json")
"""Which kinds of products are in float8, and what each costs; `studies/float8_products.py`."""


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """A weight in float8: `values` (N, ...), times `scale` (N,), is the weight by its input's
    factor; `dtype` is what the product is rounded to."""

    values: Tensor
    scale: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """As the weight's."""
        return self.values.shape

    @cached_property
    def whole(self) -> Tensor:
        """The weight by its input's factor, of `dtype`: what the float8 product multiplies by.

        Kept, for devices whose library multiplies by it at every step.
        """
        rows = self.scale.reshape(-1, *[1] * (self.values.dim() - 1))
        return (self.values.float() * rows).to(self.dtype)


@dataclass(kw_only=True)
class Float8:
    """The products of a model that are in float8: their weights by module (of a self-attention its
    three as one), and the factors of the norms before them. `used` counts the products."""

    weights: dict[nn.Module, Rounded] = field(default_factory=dict)
    factors: dict[nn.Module, float] = field(default_factory=dict)
    used: int = 0

    def add(self, module: nn.Module, weight: Tensor, norm: nn.Module) -> None:
        """One more, of a module whose input is that norm's output."""
        self.factors[norm] = factor_of(norm)
        self.weights[module] = rounded_weight(weight, self.factors[norm])

    def weight(self, module: nn.Module, weight: Tensor) -> Tensor | Rounded:
        """The module's weight for one product: in float8, or else what is given."""
        if (found := self.weights.get(module)) is None:
            return weight
        self.used += 1
        return found


NO_FLOAT8 = Float8()


def chosen_kinds() -> frozenset[str]:
    """The kinds of products that cost little enough, and gain. Raises BrokenFileError."""
    try:
        chosen = json.loads(CHOICE.read_text(encoding="utf-8"))["chosen"]
        known = isinstance(chosen, list) and bool(chosen) and set(chosen) <= set(FLOAT8_KINDS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenFileError(f"{CHOICE} cannot be used: {cause(error)}; {RENEW}") from error
    if not known:
        raise BrokenFileError(
            f"{CHOICE}: chosen is {chosen!r}; it lists one or more of {', '.join(FLOAT8_KINDS)}; "
            f"{RENEW}"
        )
    return frozenset(chosen)


def rounded_weight(weight: Tensor, factor: float) -> Rounded:
    """The weight (N, ...) of a product whose input is multiplied by `factor` before it is rounded.

    Each output channel's largest entry becomes the largest of float8.
    """
    rows = weight.reshape(len(weight), -1).float()
    scale = rows.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / LARGEST
    values = to_float8(rows / scale[:, None], 1.0).reshape(weight.shape)
    return Rounded(values=values, scale=scale / factor, dtype=weight.dtype)


def factor_of(norm: Any) -> float:
    """The power of 2 by which a norm's output is multiplied before it is rounded.

    Activations such as SiLU only shrink it.
    """
    most = float((norm.weight.float().abs() * DEVIATIONS + norm.bias.float().abs()).max())
    if not 0.0 < most < math.inf:
        return 1.0
    return 2.0 ** min(MOST_BITS, math.floor(math.log2(LARGEST / most)))


def to_float8(x: Tensor, factor: float) -> Tensor:
    """x times `factor`, rounded; what is too large becomes the largest, and NaN stays NaN."""
    return (x.float() * factor).clamp(-LARGEST, LARGEST).to(KIND)
