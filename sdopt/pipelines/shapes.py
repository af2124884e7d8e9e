"""Compiled code for any number of sizes and batches in one process, of which the latest are kept.

Dynamo counts what it has compiled per code object and gives up at eight, or at 256 altogether. All
levels share the code object of diffusers' `forward`, so the fifth size would end the process. Here
each kind of shapes has a copy of the function, and with it limits of its own; the copies are shared
by all pipelines, as the one code object was.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

MOST_KEPT = 64
"""Functions times kinds of shapes whose code is kept in a process: 3 an image size with a cutoff,
the UNet's batch of two and of one, and the decoder."""

_kept: OrderedDict[Hashable, tuple[FunctionType, Callable[..., Any]]] = OrderedDict()
_turn = threading.RLock()


def compiled_by_shapes(function: Any, mode: str) -> Callable[..., Any]:
    """The function, compiled by `torch.compile` for each kind of shapes it is called with.

    `fullgraph` turns a graph break into an error. A shape whose own limit is reached, by eight
    numbers of threads for instance, begins anew.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit

    def call(*args: Any, **kwargs: Any) -> Any:
        key = (function, mode, shapes_of(args, kwargs))
        try:
            return _compiled(key, function, mode)(*args, **kwargs)
        except FailOnRecompileLimitHit:  # raised before anything runs
            forget(key)
            return _compiled(key, function, mode)(*args, **kwargs)

    return call


def shapes_of(args: Any, kwargs: Any) -> tuple[tuple[int, ...], ...]:
    """Those of all tensors in these arguments, in order."""
    leaves = pytree.tree_leaves((args, kwargs))
    return tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor))


def forget(key: Hashable | None = None) -> None:
    """Drop the compiled code of one kind of shapes, or of all.

    Inductor keeps kernels and constants of its own for the process, so that CUDA graphs which were
    captured over this code stay right.
    """
    from torch._dynamo import reset_code  # type: ignore[attr-defined]

    with _turn:
        for one in [*_kept] if key is None else [key]:
            own, _ = _kept.pop(one, (None, None))
            if own is not None:
                reset_code(own.__code__)


def _compiled(key: Hashable, function: Any, mode: str) -> Callable[..., Any]:
    with _turn:
        if key not in _kept:
            own = copy_of(function)
            compiled = torch.compile(own, fullgraph=True, dynamic=False, mode=mode)
            _kept[key] = (own, compiled)
        _kept.move_to_end(key)
        while len(_kept) > MOST_KEPT:
            forget(next(iter(_kept)))
        return _kept[key][1]


def copy_of(function: Any) -> FunctionType:
    """The same function with a code object of its own, for which nothing was compiled yet."""
    own = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    own.__kwdefaults__ = function.__kwdefaults__
    return own
