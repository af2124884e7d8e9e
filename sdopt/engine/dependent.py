"""Dependent launch: a kernel is started while the one before it ends (Hopper and newer GPUs).

Every program first waits until the kernel before has completed, with all it wrote in memory, and
lets the next kernel be started once its own loads are under way. So a kernel completes after the
one before it, which completed after the one before that: whoever has waited is behind all earlier
kernels, whatever memory the allocator gave out again. A kernel of somebody else's lets the next one
start when it has ended.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

LEAST_DRIVER = 12030
"""CUDA 12.3, whose graphs are the first to keep how one kernel waits for another."""
AS_ALWAYS: Mapping[str, Any] = {}
DEPENDENT: Mapping[str, Any] = {"DEPENDENT": True, "launch_pdl": True}

_options: ContextVar[Mapping[str, Any]] = ContextVar("_options", default=AS_ALWAYS)


@contextmanager
def launches(dependent: bool) -> Iterator[None]:
    """The engine's kernels in here are launched so, on a card that is `dependent`."""
    before = _options.set(DEPENDENT if dependent and driver_can() else AS_ALWAYS)
    try:
        yield
    finally:
        _options.reset(before)


def options() -> Mapping[str, Any]:
    """How the next kernel is launched: arguments of the kernel and of its launch."""
    return _options.get()


def driver_can() -> bool:
    """Whether this machine's driver captures such launches; without one they are compiled."""
    version = driver_version()
    return version is None or version >= LEAST_DRIVER


@cache
def driver_version() -> int | None:
    """The newest CUDA that the driver knows, 12030 for 12.3; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    failed = driver.cuDriverGetVersion(ctypes.byref(version))
    return None if failed else version.value
