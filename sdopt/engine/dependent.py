"""Programmatic dependent launch: a kernel begins while the one before it ends (from Hopper on).

Every program waits until the kernel before has completed, with all it wrote in memory, before it
reads or writes what an earlier kernel may still use, and only then lets the next kernel begin. So a
kernel completes after the one before it, which completed after the one before that: whoever has
waited is behind all earlier kernels, whatever memory the allocator gave out again. What is read
before the wait, the first weights, is behind all but the one kernel before, which may therefore
write no weights: so it is within `launches` alone, and a copy of weights there is told by `copied`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from sdopt.engine.cards import Card
from sdopt.errors import SdoptError

DEPENDENT = "SDOPT_DEPENDENT"
"""Environment variable of an experiment: `*=late,product=bare,layer_norm=off`, 1 is `*=late`."""
TRIGGERS = {"off": 0, "late": 1, "early": 2, "never": 3, "bare": 4}
"""When the next kernel may begin: behind the last loads, right behind the wait, or once all
programs have ended. `bare` is `late` without weights before the wait."""
KERNELS = (
    *("convolution", "matrix_product", "product", "narrow_convolution", "attention"),
    *("group_norm_small", "group_statistics", "combine_statistics", "group_norm_apply"),
    *("layer_norm", "epilogue", "sum_splits", "solver_step"),
)
"""Names of kernels without `sdopt_`; `product` is the specialized one, of convolutions too."""

_chosen: ContextVar[Mapping[str, int] | None] = ContextVar("_chosen", default=None)
_behind_copy: ContextVar[bool] = ContextVar("_behind_copy", default=False)


@contextmanager
def launches(card: Card, text: str | None = None) -> Iterator[None]:
    """The engine's kernels in here are launched so; nobody writes to weights in here.

    `text` is as the environment variable's.
    """
    before = _chosen.set(triggers(card, os.environ.get(DEPENDENT, "") if text is None else text))
    try:
        yield
    finally:
        _chosen.reset(before)


def options(kernel: str) -> dict[str, Any]:
    """How a kernel of KERNELS is launched next; nothing where it is launched as always."""
    chosen = _chosen.get()
    if not chosen or not chosen[kernel]:
        return {}
    whole = _behind_copy.get()
    _behind_copy.set(False)
    return {"DEPENDENT": chosen[kernel], "launch_pdl": not whole}


def copied(weight: Tensor, source: Tensor) -> Tensor:
    """`weight`, which the next launch reads: it comes behind all of the kernel that copied it."""
    if weight.data_ptr() != source.data_ptr() and _chosen.get():
        _behind_copy.set(True)
    return weight


def triggers(card: Card, text: str) -> dict[str, int]:
    """The trigger of each kernel on this card. Raises SdoptError for text that names another."""
    if text in ("", "0") or not card.dependent:
        return {}
    chosen = dict.fromkeys(KERNELS, 0)
    for part in ("*=late" if text == "1" else text).split(","):
        names, _, trigger = part.partition("=")
        if (names != "*" and names not in KERNELS) or trigger not in TRIGGERS:
            raise SdoptError(
                f"{DEPENDENT} has {part!r}: give NAME=TRIGGER, NAME * or one of "
                f"{', '.join(KERNELS)}, TRIGGER one of {', '.join(TRIGGERS)}"
            )
        chosen |= dict.fromkeys(KERNELS if names == "*" else [names], TRIGGERS[trigger])
    return chosen
