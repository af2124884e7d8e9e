"""Dependent launch: a kernel is started while the one before it ends (Hopper and newer GPUs).

Every program first waits until the kernel before has completed, with all it wrote in memory, and
lets the next kernel be started once its own loads are under way. So a kernel completes after the
one before it, which completed after the one before that: whoever has waited is behind all earlier
kernels, whatever memory the allocator gave out again. A kernel of somebody else's lets the next one
start when it has ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

AS_ALWAYS: Mapping[str, Any] = {}
DEPENDENT: Mapping[str, Any] = {"DEPENDENT": True, "launch_pdl": True}

_options: ContextVar[Mapping[str, Any]] = ContextVar("_options", default=AS_ALWAYS)


@contextmanager
def launches(dependent: bool) -> Iterator[None]:
    """The engine's kernels in here are launched so, on a card that is `dependent`."""
    before = _options.set(DEPENDENT if dependent else AS_ALWAYS)
    try:
        yield
    finally:
        _options.reset(before)


def options() -> Mapping[str, Any]:
    """How the next kernel is launched: arguments of the kernel and of its launch."""
    return _options.get()
