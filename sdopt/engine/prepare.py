"""What a first image on a GPU waits for, done in a thread while diffusers is being imported."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

import torch
import torch.nn.functional as F

from sdopt.engine import ops
from sdopt.levels import Level
from sdopt.util.precision import chosen_dtype

WIDTH, HEADS, TOKENS = 320, 8, 80
"""Those of SD 1.5's outer attention, so that the one kernel of ours that runs here is needed."""


@contextmanager
def prepared(level: Level, device: str | None, dtype: object = None) -> Iterator[None]:
    """Load the GPU's libraries and Triton beside what runs inside; wait for them at the end.

    Does nothing for a level without our kernels, or where there is no GPU. Errors are dropped: the
    level's own checks and the first image meet them again and name them.
    """
    gpu = used_gpu(device) if level.fused else None
    if gpu is None:
        yield
        return
    kind: torch.dtype = getattr(torch, chosen_dtype(gpu.type, dtype))
    thread = threading.Thread(target=_tried, args=(gpu, kind), name="sdopt-prepare")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def used_gpu(device: str | None) -> torch.device | None:
    """The CUDA device that images will be generated on, with its number; None for the CPU."""
    if not torch.cuda.is_available():
        return None
    chosen = torch.device(device or "cuda")
    if chosen.type != "cuda":
        return None
    # A new thread's current device is the first one, whatever this thread's is.
    begun = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    current = torch.cuda.current_device() if begun else 0
    return torch.device("cuda", current if chosen.index is None else chosen.index)


@torch.no_grad()
def first_uses(device: torch.device, dtype: torch.dtype) -> None:
    """Use once, on zeros, what loads a library or hashes a compiler when it is used first."""
    tokens = torch.zeros((1, TOKENS, WIDTH), device=device, dtype=dtype)  # the device's context
    square = torch.zeros((WIDTH, WIDTH), device=device, dtype=dtype)
    ops.layer_norm(tokens, torch.nn.LayerNorm(WIDTH, device=device, dtype=dtype))  # Triton
    F.linear(tokens, square)  # cuBLAS
    ops.attention(tokens, tokens, tokens, HEADS)  # cuDNN
    F.conv2d(tokens.mT.unsqueeze(-1), square[:, :, None, None])
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _tried(device: torch.device, dtype: torch.dtype) -> None:
    with suppress(Exception), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        first_uses(device, dtype)
