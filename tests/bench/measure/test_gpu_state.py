"""A measurement is void when another process used the GPU or heat held it back; power is noted."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdopt.bench.measure import gpu_state
from sdopt.bench.measure.gpu_state import GpuState, watched

CUDA = torch.device("cuda")
OWN = os.getpid()
POWER, HEAT = 0, 1


class FakeNvml(SimpleNamespace):
    """As much of pynvml as is read."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVML_PERF_POLICY_POWER, NVML_PERF_POLICY_THERMAL = POWER, HEAT
    NVMLError_NotSupported = LookupError

    def __init__(self) -> None:
        super().__init__(pids=[OWN], violations={POWER: 0, HEAT: 0}, supported=True)

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=3 * 2**20) for pid in self.pids]

    def nvmlDeviceGetViolationStatus(self, handle: str, policy: int) -> Any:
        if not self.supported:
            raise LookupError
        return SimpleNamespace(violationTime=self.violations[policy])

    def nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> int:
        return {1: 1980, 2: 3201}[clock]

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return 41

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 412_500


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="u")
    )
    seconds = iter((100.0, 110.0))
    monkeypatch.setattr(gpu_state.time, "monotonic", lambda: next(seconds))
    return fake


def test_an_undisturbed_measurement_has_a_state_and_nothing_else(nvml: FakeNvml) -> None:
    with watched(CUDA) as watch:
        pass
    assert watch.disturbances == ()
    assert watch.state == GpuState(
        sm_clock_mhz=1980, memory_clock_mhz=3201, temperature_c=41, power_w=412.5
    )


def test_another_process_is_named(nvml: FakeNvml) -> None:
    with watched(CUDA) as watch:
        nvml.pids.append(77)
    assert watch.strangers == ("process 77 used the GPU too (3 MiB)",)


def test_a_process_that_ended_meanwhile_is_named_too(nvml: FakeNvml) -> None:
    nvml.pids.append(77)
    with watched(CUDA) as watch:
        nvml.pids.remove(77)
    assert watch.disturbances == ("process 77 used the GPU too (3 MiB)",)


def test_in_a_container_the_only_process_is_this_one(nvml: FakeNvml) -> None:
    nvml.pids = [123456]
    with watched(CUDA) as watch:
        pass
    assert watch.disturbances == ()


def test_heat_is_named_with_its_share(nvml: FakeNvml) -> None:
    with watched(CUDA) as watch:
        nvml.violations[HEAT] += 2 * 10**9
    assert watch.disturbances == ("heat held the GPU back 20 % of the time",)


def test_a_moment_of_heat_passes(nvml: FakeNvml) -> None:
    with watched(CUDA) as watch:
        nvml.violations[HEAT] += 5 * 10**7
    assert watch.disturbances == ()


def test_the_power_limit_is_noted_and_voids_nothing(nvml: FakeNvml) -> None:
    with watched(CUDA) as watch:
        nvml.violations[POWER] += 2 * 10**9
    assert watch.disturbances == ()
    assert watch.state is not None
    assert watch.state.power_limited == 0.2


def test_a_driver_without_these_counters_is_used_as_it_is(nvml: FakeNvml) -> None:
    nvml.supported = False
    with watched(CUDA) as watch:
        pass
    assert watch.disturbances == ()


def test_a_cpu_has_no_state() -> None:
    with watched(torch.device("cpu")) as watch:
        pass
    assert (watch.state, watch.disturbances) == (None, ())
