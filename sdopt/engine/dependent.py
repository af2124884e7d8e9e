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

from sdopt.errors import SdoptError

DEPENDENT = "SDOPT_DEPENDENT"
"""Environment variable of an experiment: `*=late,product=bare,layer_norm=off`, 1 is `*=late`."""
TRIGGERS = {
    "off": (0, False),
    "late": (1, True),
    "early": (2, True),
    "never": (3, True),
    "bare": (4, True),
    "lets": (4, False),
}
"""What a kernel's DEPENDENT is, and whether it may begin early itself. The next one may begin once
the last loads are under way (`late`), right behind the wait (`early`), or when all programs have
ended (`never`). `bare` is `late` without weights before the wait; `lets` is so and waits for a
whole kernel, but lets the next one begin."""
KERNELS = (
    *("convolution", "matrix_product", "product", "narrow_convolution", "attention"),
    *("group_norm_small", "group_statistics", "combine_statistics", "group_norm_apply"),
    *("layer_norm", "epilogue", "sum_splits", "solver_step"),
)
"""Names of kernels without `sdopt_`; `product` is the specialized one, of convolutions too."""

_chosen: ContextVar[Mapping[str, tuple[int, bool]] | None] = ContextVar("_chosen", default=None)
_behind_copy: ContextVar[bool] = ContextVar("_behind_copy", default=False)


@contextmanager
def launches(able: bool, text: str | None = None) -> Iterator[None]:
    """The engine's kernels in here are launched so; nobody writes to weights in here.

    `able` is what `Card.dependent` says; `text` is as the environment variable's.
    """
    before = _chosen.set(triggers(able, os.environ.get(DEPENDENT, "") if text is None else text))
    try:
        yield
    finally:
        _chosen.reset(before)


def options(kernel: str) -> dict[str, Any]:
    """How a kernel of KERNELS is launched next; nothing where it is launched as always."""
    value, early = (_chosen.get() or {}).get(kernel, TRIGGERS["off"])
    if not value:
        return {}
    early = early and not _behind_copy.get()
    _behind_copy.set(False)
    return {"DEPENDENT": value, "launch_pdl": early}


def copied(weight: Tensor, source: Tensor) -> Tensor:
    """`weight`, which the next launch reads: it comes behind all of the kernel that copied it."""
    if weight.data_ptr() != source.data_ptr() and _chosen.get():
        _behind_copy.set(True)
    return weight


def triggers(able: bool, text: str) -> dict[str, tuple[int, bool]]:
    """The trigger of each kernel, nothing where all are off. Raises SdoptError for other names."""
    if text in ("", "0") or not able:
        return {}
    chosen = dict.fromkeys(KERNELS, TRIGGERS["off"])
    for part in ("*=late" if text == "1" else text).split(","):
        names, _, trigger = part.partition("=")
        if (names != "*" and names not in KERNELS) or trigger not in TRIGGERS:
            raise SdoptError(
                f"{DEPENDENT} has {part!r}: give NAME=TRIGGER, NAME * or one of "
                f"{', '.join(KERNELS)}, TRIGGER one of {', '.join(TRIGGERS)}"
            )
        chosen |= dict.fromkeys(KERNELS if names == "*" else [names], TRIGGERS[trigger])
    return chosen
