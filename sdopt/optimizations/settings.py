"""Process-wide switches of PyTorch, set while a level runs and restored after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sdopt.levels import Level

if TYPE_CHECKING:
    import torch


@contextmanager
def process_settings(level: Level, device: torch.device) -> Iterator[None]:
    """The level's CUDA switches, and one CPU thread beside a GPU; restored on exit."""
    with _cuda_switches(level), _one_thread_beside_a_gpu(device):
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
        matmul.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = level.tf32
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@contextmanager
def _one_thread_beside_a_gpu(device: torch.device) -> Iterator[None]:
    """On CUDA the CPU has one small parallel operation a picture, float16 to float32 at its end.

    The threads that share it then spin for longer than the operation takes. A picture on the CPU
    keeps them all.
    """
    import torch

    if device.type != "cuda":
        yield
        return
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
