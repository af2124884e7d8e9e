"""The hardware and the versions that a measurement is made on, and its memory given back."""

from __future__ import annotations

import gc
import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sdopt.errors import BrokenFileError, UnknownNameError

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "diffusers", "transformers")


POINTERS = "SDOPT_POINTERS"
"""Environment variable: 1 lets newer GPUs read as those before Hopper do, to test that on them."""


def pointers_forced() -> bool:
    """Whether kernels read through pointers on any GPU; UnknownNameError for a third answer."""
    value = os.environ.get(POINTERS, "")
    if value not in ("", "0", "1"):
        raise UnknownNameError(f"${POINTERS}", value, ("0", "1"))
    return value == "1"


class Keyed(Protocol):
    """What histories are filed under: a machine at hand, or one that only its runs tell of."""

    @property
    def key(self) -> str:
        """The folder's name."""


@dataclass(frozen=True)
class HardwareKey:
    """A machine that is not at hand."""

    key: str


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a measurement was made on. Runs of different `key` are never compared."""

    name: str
    memory_gib: int
    detail: str

    @property
    def key(self) -> str:
        """The folder name, for example 'nvidia-h100-80gb-hbm3-80gib-700-w'."""
        return slug(f"{self.name}-{self.memory_gib}gib-{self.detail}")

    def __str__(self) -> str:
        return f"{self.name}, {self.memory_gib} GiB, {self.detail}"


def hardware_of(device: torch.device) -> Hardware:
    """Name, memory and power limit of a CUDA device; name, memory and cores of a CPU."""
    if device.type == "cuda":
        return _cuda_hardware(device)
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(
        name=f"cpu {_cpu_name()}",
        memory_gib=round(pages / 2**30),
        detail=f"{len(os.sched_getaffinity(0))} cores",
    )


def versions() -> dict[str, str]:
    """Of everything that may move a number."""
    import torch

    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "cuda": str(torch.version.cuda),
        "threads": str(torch.get_num_threads()),
    }


def _cuda_hardware(device: torch.device) -> Hardware:
    import torch

    properties = torch.cuda.get_device_properties(device)
    return Hardware(
        name=properties.name,
        memory_gib=round(properties.total_memory / 2**30),
        detail=f"{_power_limit_w(str(properties.uuid))} W{', pointers' * pointers_forced()}",
    )


def _power_limit_w(uuid: str) -> int:
    """The enforced power limit in watts.

    Raises BrokenFileError if it cannot be had: without it two cards would share one key.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        return round(float(pynvml.nvmlDeviceGetEnforcedPowerLimit(handle)) / 1e3)
    except pynvml.NVMLError as error:
        raise BrokenFileError(
            f"the power limit of GPU {uuid} cannot be read ({error}), and it is part of the "
            "hardware key; see what `nvidia-smi --query --display=POWER` says"
        ) from error


def nvml_handle(device: torch.device) -> Any:
    """NVML's handle of a CUDA device."""
    import pynvml
    import torch

    pynvml.nvmlInit()
    uuid = torch.cuda.get_device_properties(device).uuid
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")


def other_processes(handle: Any) -> dict[int, int]:
    """MiB by process id of every other process that computes on the GPU of that NVML handle."""
    import pynvml

    running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    used = {process.pid: (process.usedGpuMemory or 0) // 2**20 for process in running}
    if used.pop(os.getpid(), None) is None and len(used) == 1:
        # In a container NVML gives the host's process ids: a single one is this process.
        return {}
    return used


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def slug(text: str) -> str:
    """'nvidia-h200' for 'NVIDIA H200'."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def free_memory(device: torch.device) -> None:
    """Collect cycles (a compiled UNet is one) and give cached device memory back.

    Not the workspaces of cuBLAS: a CUDA graph that somebody captured may use them.
    """
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
