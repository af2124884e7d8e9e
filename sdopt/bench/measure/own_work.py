"""The arithmetic of a project's own modules, counted by running copies of them on the meta device.

They may be of any class, with forward passes of their own: so the very module is copied, without
its weights, and called with what it was called with.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sdopt.errors import SdoptError

META = torch.device("meta")


def on_meta(value: Any) -> Any:
    """The same tree of arguments with tensors that have no values."""
    if isinstance(value, Tensor):
        return value.detach().to(META)
    if isinstance(value, dict):
        return {name: on_meta(inner) for name, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(on_meta(inner) for inner in value)
    return value


def signature(value: Any) -> Any:
    """What of the arguments decides about the arithmetic, as text."""
    if isinstance(value, Tensor):
        return f"{value.dtype}{tuple(value.shape)}"
    if isinstance(value, dict):
        return {name: signature(inner) for name, inner in value.items()}
    if type(value) in (list, tuple):
        return [signature(inner) for inner in value]
    return repr(value)


def counted_flop(what: str, module: Any, inputs: tuple[Any, Any]) -> FlopCounterMode:
    """A counter of one call. Raises SdoptError for a module that needs values."""
    args, kwargs = inputs
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), torch.device(META):
            twin = _without_values(module)
            with counter:
                twin(*args, **kwargs)
    except Exception as error:  # whatever the module's own code raises
        raise SdoptError(
            f"the arithmetic of {what} cannot be counted: on the meta device its "
            f"{type(module).__name__} raised {type(error).__name__}: {error}; give the level "
            "counts_flop=False"
        ) from error
    return counter


def _without_values(module: Any) -> Any:
    """A copy on the meta device, without forward passes of compilers that were put into it."""
    original = getattr(module, "_orig_mod", module)
    memo: dict[int, Any] = {
        id(one): torch.nn.Parameter(one.detach().to(META), requires_grad=False)
        for one in original.parameters()
    }
    memo |= {id(one): one.detach().to(META) for one in original.buffers()}
    return deepcopy(original, memo)
