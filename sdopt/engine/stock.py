"""Tell the modules of PyTorch, diffusers, transformers and peft from what was put into them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_modules

from sdopt.engine.watch import FUNCTIONS, GLOBAL_HOOKS, HOOKS

PACKAGES = ("torch", "diffusers", "transformers", "peft")
"""Whose modules compute with tensors and nothing else, so that a graph may stand for them."""
_ORIGINALS = {name: getattr(F, name) for name in FUNCTIONS}


def foreign(parts: dict[str, nn.Module], called: Sequence[nn.Module] = ()) -> str | None:
    """What is in these parts that is nobody's stock code, in words; None if there is nothing.

    Such a thing may do anything at each call, print or count, which a graph that is replayed would
    leave out. The own `forward` and hooks of what is `called` from outside run by themselves.
    """
    return next(_foreign(parts, {id(module) for module in (*parts.values(), *called)}), None)


def _foreign(parts: dict[str, nn.Module], called: set[int]) -> Iterator[str]:
    if any(getattr(torch_modules, name) for name in GLOBAL_HOOKS):
        yield "the hook for all modules that was registered with torch.nn.modules.module"
    for name, original in _ORIGINALS.items():
        if getattr(F, name) is not original:
            yield f"the {name} that was put into torch.nn.functional"
    seen: set[type] = set()
    for part, root in parts.items():
        for path, module in root.named_modules(prefix=part):
            kind = type(module)
            if kind not in seen and not is_stock(kind):
                yield f"the {kind.__name__} that was put into a module, {path}"
            seen.add(kind)
            yield from _inserted(path, module, but=("forward",) if id(module) in called else ())
            if id(module) not in called and any(getattr(module, name) for name in HOOKS):
                yield f"the forward hook of a module, {path}"
            processor = getattr(module, "processor", None)
            if processor is not None and not _is_of_package(type(processor)):
                yield f"the {type(processor).__name__} that was put into a module, {path}"


def _inserted(path: str, module: nn.Module, but: Sequence[str]) -> Iterator[str]:
    """Methods of a module that are not its class's."""
    for name, value in vars(module).items():
        own = getattr(type(module), name, None)
        if isinstance(own, FunctionType) and callable(value) and name not in but:
            yield f"the {name} that was put into a module, {path}"


def is_stock(kind: type) -> bool:
    """Whether a module's class is of one of PACKAGES, with its own forward pass."""
    if not _is_of_package(kind):
        return False
    forward: Any = kind.forward  # type: ignore[attr-defined]
    owner = next(base for base in kind.__mro__ if "forward" in vars(base))
    return (
        getattr(forward, "__qualname__", "") in (f"{owner.__qualname__}.forward", _NO_FORWARD)
        and getattr(forward, "__module__", "") == owner.__module__
    )


_NO_FORWARD: str = nn.Module.forward.__qualname__
"""What classes have that are never called, such as ModuleList."""


def _is_of_package(kind: type) -> bool:
    return kind.__module__.split(".")[0] in PACKAGES
