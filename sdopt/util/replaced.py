"""An attribute replaced for a while: how a method is watched, and how a fault gets in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[Any]:
    """Give an object, class or module another attribute inside; yields the owner.

    Afterwards it has its own again, or inherits it again. The `__setattr__` of torch's modules and
    of pipelines is passed by: it registers parts, and a compiled module hands it on.
    """
    is_plain = isinstance(owner, type | ModuleType)
    put: Any = setattr if is_plain else object.__setattr__
    drop: Any = delattr if is_plain else object.__delattr__
    had, before = name in vars(owner), vars(owner).get(name)
    put(owner, name, value)
    try:
        yield owner
    finally:
        if had:
            put(owner, name, before)
        else:
            drop(owner, name)
