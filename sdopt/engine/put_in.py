"""Forward passes that were put into a module, and what becomes of them in a copy of it."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sdopt.errors import SdoptError


class PutIn:
    """A forward pass in the place of a module's own, for that module alone.

    It computes with the weights of that module. So what `copy.deepcopy`, pickle and `torch.save`
    put into a copy is the forward pass of the copy's class: plain and right, without a level.

    `after` happens after each call: the bench lets a fault take time there, which no check of
    what was done to the module would take for another forward pass.
    """

    after: Callable[[], None] | None = None

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        self._module = weakref.ref(module)  # it has this one
        self.function = function
        self.__signature__ = inspect.signature(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns; what the class's own does where somebody else compiles it."""
        if torch.compiler.is_compiling():
            return _of_its_class(self.module)(*args, **kwargs)
        result = self.function(*args, **kwargs)
        if self.after is not None:
            self.after()
        return result

    def __reduce__(self) -> Any:
        return OfItsClass, (self.module,)

    @property
    def module(self) -> nn.Module:
        """The module that has it. Raises SdoptError if that is gone."""
        module = self._module()
        if module is None:
            raise SdoptError("the module of this forward pass is gone; keep it as long as you copy")
        return module


class OfItsClass(PutIn):
    """The forward pass of a module's class, in a copy that had another one."""

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)

    @property
    def function(self) -> Callable[..., Any]:  # type: ignore[override]
        """That of the class as it is now."""
        return _of_its_class(self.module)

    @property
    def __signature__(self) -> inspect.Signature:  # type: ignore[override]
        return inspect.signature(self.function)


def _of_its_class(module: nn.Module) -> Callable[..., Any]:
    forward: Any = type(module).forward
    return forward.__get__(module)  # type: ignore[no-any-return]
