"""CUDA memory of one steady image; on the CPU there is no such figure, and none is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sdopt.bench.measure.gpu_state import watched
from sdopt.pipelines.workload import Request, generate

if TYPE_CHECKING:
    from sdopt.pipelines.pipeline import LevelPipeline

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Peaks of one image in MiB.

    `peak_allocated_mib` misses the private pools of CUDA graphs, so what the allocator reserved and
    what the device as a whole has in use are kept beside it. `disturbances` says what voids them.
    """

    peak_allocated_mib: float
    peak_reserved_mib: float
    device_used_mib: float
    disturbances: tuple[str, ...] = ()


def allocated_mib(device: torch.device) -> float:
    """What tensors hold at this moment; 0 on the CPU.

    The workspaces of cuBLAS are freed before. Graphs that were captured otherwise than here may
    use them, so no pipeline may be warm.
    """
    if device.type != "cuda":
        return 0.0
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated(device) / MIB


def memory(pipeline: LevelPipeline, request: Request) -> Memory | None:
    """The peaks of one image of a warm pipeline, or None without CUDA."""
    return memory_of(lambda: generate(pipeline, request), pipeline.device)


def memory_of(run: Callable[[], object], device: torch.device) -> Memory | None:
    """The peaks while `run` runs, or None without CUDA."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    with watched(device) as watch:
        run()
        torch.cuda.synchronize(device)
        free, total = torch.cuda.mem_get_info(device)
    return Memory(
        peak_allocated_mib=torch.cuda.max_memory_allocated(device) / MIB,
        peak_reserved_mib=torch.cuda.max_memory_reserved(device) / MIB,
        device_used_mib=(total - free) / MIB,
        # A GPU held back by heat or power needs no more memory than a fast one.
        disturbances=watch.strangers,
    )
