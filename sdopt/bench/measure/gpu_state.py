"""The state of the GPU around a measurement, by NVML: clocks, heat, power, and who else uses it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from sdopt.util.hardware import nvml_handle, other_processes

MOST_THROTTLED = 0.01
"""The share of a measurement's time in which heat may have held the GPU back."""


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """One reading of NVML; and for which share of the time before the power limit lowered clocks.

    That limit voids no time: an image that uses the card to the full meets it in every run, and
    the hardware key says which limit it is.
    """

    sm_clock_mhz: int
    memory_clock_mhz: int
    temperature_c: int
    power_w: float
    power_limited: float = 0.0


@dataclass(kw_only=True)
class Watch:
    """What was read around a measurement, and what makes it void: other processes, heat."""

    state: GpuState | None = None
    strangers: tuple[str, ...] = ()
    throttling: tuple[str, ...] = ()

    @property
    def disturbances(self) -> tuple[str, ...]:
        """Everything that makes a time void."""
        return self.strangers + self.throttling


@contextmanager
def watched(device: torch.device) -> Iterator[Watch]:
    """Read the GPU before and after, never during, the measurement inside; nothing on a CPU."""
    watch = Watch()
    if device.type != "cuda":
        yield watch
        return
    gpu = _Gpu(device)
    strangers, held_back, started = gpu.strangers(), gpu.held_back_s(), time.monotonic()
    yield watch
    elapsed = time.monotonic() - started
    now = gpu.held_back_s()
    shares = {cause: (now[cause] - before) / elapsed for cause, before in held_back.items()}
    watch.state = replace(gpu.state(), power_limited=round(shares.get("power", 0.0), 4))
    strangers |= gpu.strangers()
    watch.strangers = tuple(
        f"process {pid} used the GPU too ({mib} MiB)" for pid, mib in sorted(strangers.items())
    )
    if shares.get("heat", 0.0) > MOST_THROTTLED:
        watch.throttling = (f"heat held the GPU back {100 * shares['heat']:.0f} % of the time",)


class _Gpu:
    """NVML's handle of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        import pynvml

        self.nvml = pynvml
        self.handle: Any = nvml_handle(device)

    def state(self) -> GpuState:
        nvml, handle = self.nvml, self.handle
        return GpuState(
            sm_clock_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            memory_clock_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            temperature_c=nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            power_w=nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        )

    def strangers(self) -> dict[int, int]:
        """MiB by process id of every other process that computes on the GPU."""
        return other_processes(self.handle)

    def held_back_s(self) -> dict[str, float]:
        """Seconds since the driver started in which each cause lowered the clocks."""
        nvml = self.nvml
        policies = {"power": nvml.NVML_PERF_POLICY_POWER, "heat": nvml.NVML_PERF_POLICY_THERMAL}
        found = {}
        for cause, policy in policies.items():
            try:
                status = nvml.nvmlDeviceGetViolationStatus(self.handle, policy)
            except nvml.NVMLError_NotSupported:
                continue
            found[cause] = status.violationTime / 1e9
        return found
