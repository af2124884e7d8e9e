"""Process-wide switches of PyTorch, set while a level runs and restored after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sdopt.levels import Level


@contextmanager
def process_settings(level: Level) -> Iterator[None]:
    """TF32 and cuDNN's algorithm search as the level wants them, restored on exit.

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
