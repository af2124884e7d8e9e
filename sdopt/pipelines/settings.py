"""Process-wide switches of PyTorch, set while a level runs and restored after it."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from sdopt.levels import Level

if TYPE_CHECKING:
    import torch


_turn = threading.RLock()
"""One for the process, as the switches are: two of them could wait for each other, if a callback of
each pipeline generates with the other."""


@contextmanager
def process_settings(level: Level, device: torch.device) -> Iterator[None]:
    """The level's CUDA switches, and one CPU thread beside a GPU; restored on exit.

    Threads take turns: each finds the settings of its own level, and the last one leaves those of
    the user. The thread whose turn it is may enter again.
    """
    with _turn, _cuda_switches(level), _one_thread_beside_a_gpu(device):
        yield


@contextmanager
def _cuda_switches(level: Level) -> Iterator[None]:
    """TF32 and cuDNN's algorithm search as the level wants them.

    The pre-2.9 names are used on purpose: after the newer `fp32_precision` is set, Inductor's own
    reading of `allow_tf32` raises.
    """
    import torch

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark)
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = level.tf32
        cudnn.benchmark = level.searches
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@contextmanager
def _one_thread_beside_a_gpu(device: torch.device) -> Iterator[None]:
    """On CUDA the CPU has one small parallel operation an image, float16 to float32 at its end.

    The threads that share it then spin for longer than the operation takes. An image on the CPU
    keeps them all.
    """
    import torch

    if device.type != "cuda":
        yield
        return
    before = torch.get_num_threads()
    try:
        _thread_count_setter()(1)
        yield
    finally:
        _thread_count_setter()(before)


@cache
def _thread_count_setter() -> Callable[[int], Any]:
    """OpenMP's own, which sets it for the calling thread; where there is none, PyTorch's.

    PyTorch's also sets what a thread begins with that computes for the first time meanwhile, and
    keeps.
    """
    import torch

    try:
        return ctypes.CDLL(torch._C.__file__).omp_set_num_threads
    except (AttributeError, OSError):
        return torch.set_num_threads
