"""What the GPU did during one image: kernels, its busy time, and where the host waited for it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

LAUNCHES = (
    "cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cudaGraphLaunch",
)
GRAPH_LAUNCH = "cudaGraphLaunch"
SYNCHRONIZATIONS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
COPIES = ("Memcpy", "Memset", "memcpy", "memset")
"""How the names of copies begin, and of the driver's kernels that make them.

A graph that was captured before the profiler was first attached shows such kernels (`memcpy128`,
`memcpy32_post`), one captured later copies in their place: an image of a process's first level
would have two kernels more than the same image later on
(https://github.com/pytorch/pytorch/issues/191284).
"""
FUSED = "triton_"
"""How the name of every kernel begins that Inductor generated."""
OWN = "sdopt_"
"""How the name of every kernel of the engine begins."""
FLOAT8 = "sdopt_product_float8"
SOLVER = "sdopt_solver_step"
"""Levels without the engine's fused modules have this one too."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One entry of a profile; times in ns. `on_gpu` is whether the GPU did it or the host."""

    name: str
    start: int
    end: int
    on_gpu: bool
    correlation: int


@dataclass(frozen=True, kw_only=True)
class GpuCall:
    """One call of a part of the pipeline: the kernels it launched, and how many CUDA graphs."""

    part: str
    kernels: int
    fused_kernels: int
    graph_launches: int


@dataclass(frozen=True, kw_only=True)
class GpuActivity:
    """One image on the GPU.

    `kernel_launches` counts the kernels that ran, those inside CUDA graphs too, and no copies;
    `gpu_busy_ms` is the time in which at least one kernel or copy ran; `host_syncs` counts where
    the host waited for the device between the first UNet call and the decoder. Of the kernels
    `fused_kernels` are Inductor's, `own_kernels` the engine's, and `float8_kernels` its products in
    float8; `graph_launches` counts CUDA graphs.
    """

    kernel_launches: int
    gpu_busy_ms: float
    host_syncs: int
    calls: tuple[GpuCall, ...]
    fused_kernels: int = 0
    own_kernels: int = 0
    float8_kernels: int = 0
    graph_launches: int = 0


def gpu_activity(events: Sequence[Event], marks: Sequence[tuple[str, int, int]]) -> GpuActivity:
    """The GPU's part of a profile. `marks` are part, start and end of each call, in order."""
    device = [event for event in events if event.on_gpu]
    kernels = [event for event in device if not event.name.startswith(COPIES)]
    launches = sorted((e for e in events if e.name in LAUNCHES), key=attrgetter("start"))
    starts = [launch.start for launch in launches]
    return GpuActivity(
        kernel_launches=len(kernels),
        gpu_busy_ms=busy_ns((event.start, event.end) for event in device) / 1e6,
        host_syncs=_host_syncs(events, marks),
        calls=tuple(
            _call(part, launches[bisect_left(starts, begin) : bisect_left(starts, end)], kernels)
            for part, begin, end in marks
        ),
        fused_kernels=sum(kernel.name.startswith(FUSED) for kernel in kernels),
        own_kernels=sum(map(_is_own, kernels)),
        float8_kernels=sum(kernel.name.startswith(FLOAT8) for kernel in kernels),
        graph_launches=sum(launch.name == GRAPH_LAUNCH for launch in launches),
    )


def _is_own(kernel: Event) -> bool:
    return kernel.name.startswith(OWN) and kernel.name != SOLVER


def busy_ns(intervals: Iterable[tuple[int, int]]) -> int:
    """The length of the union of intervals."""
    total = last = 0
    for start, end in sorted(intervals):
        total += max(0, end - max(start, last))
        last = max(last, end)
    return total


def _host_syncs(events: Sequence[Event], marks: Sequence[tuple[str, int, int]]) -> int:
    if not marks:  # one graph for the whole image: the loop is where no host is
        return 0
    begins = {part: start for part, start, _ in reversed(marks)}
    loop_starts, loop_ends = begins.get("unet", 0), begins.get("decoder", 0)
    return sum(
        event.name in SYNCHRONIZATIONS and loop_starts <= event.start < loop_ends
        for event in events
    )


def _call(part: str, launches: Sequence[Event], kernels: Sequence[Event]) -> GpuCall:
    ids = {event.correlation for event in launches}
    launched = [kernel for kernel in kernels if kernel.correlation in ids]
    return GpuCall(
        part=part,
        kernels=len(launched),
        fused_kernels=sum(kernel.name.startswith(FUSED) for kernel in launched),
        graph_launches=sum(event.name == GRAPH_LAUNCH for event in launches),
    )


def events_of(results: Any, ignored: tuple[str, ...]) -> list[Event]:
    """The raw Kineto results' events, without those whose name starts with one of `ignored`.

    Regions that the host marks appear a second time among the GPU's events, and are not its work.
    """
    return [
        Event(
            name=event.name(),
            start=event.start_ns(),
            end=event.end_ns(),
            on_gpu=str(event.device_type()) == "DeviceType.CUDA",
            correlation=event.correlation_id(),
        )
        for event in results.events()
        if not event.name().startswith(ignored) and not event.is_user_annotation()
    ]
