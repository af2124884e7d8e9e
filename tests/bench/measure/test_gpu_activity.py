"""A profile tells what the GPU did, call by call: kernels, busy time, waiting."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdopt import engine
from sdopt.bench.measure.gpu_activity import (
    OWN,
    SOLVER,
    Event,
    GpuCall,
    busy_ns,
    events_of,
    gpu_activity,
)

MARKS = [("unet", 100, 200), ("unet", 300, 400), ("decoder", 500, 600)]


def launch(name: str, start: int, correlation: int) -> Event:
    return Event(name=name, start=start, end=start + 1, on_gpu=False, correlation=correlation)


def kernel(name: str, start: int, end: int, correlation: int) -> Event:
    return Event(name=name, start=start, end=end, on_gpu=True, correlation=correlation)


EVENTS = [
    launch("cudaLaunchKernel", 110, 1),
    kernel("triton_poi_fused_0", 1_000_000, 3_000_000, 1),
    launch("cudaLaunchKernel", 120, 2),
    kernel("sm90_xmma_gemm", 2_000_000, 4_000_000, 2),
    launch("cudaGraphLaunch", 310, 3),
    kernel("triton_red_fused_1", 5_000_000, 6_000_000, 3),
    kernel("Memcpy DtoD", 6_000_000, 6_500_000, 3),
    launch("cudaStreamSynchronize", 50, 4),
    launch("cudaStreamSynchronize", 250, 5),
    launch("cudaStreamSynchronize", 700, 6),
]


def test_kernels_belong_to_the_call_that_launched_them() -> None:
    activity = gpu_activity(EVENTS, MARKS)
    assert activity.calls == (
        GpuCall(part="unet", kernels=2, fused_kernels=1, graph_launches=0),
        GpuCall(part="unet", kernels=1, fused_kernels=1, graph_launches=1),
        GpuCall(part="decoder", kernels=0, fused_kernels=0, graph_launches=0),
    )


def test_kernels_are_counted_and_copies_only_keep_busy() -> None:
    activity = gpu_activity(EVENTS, MARKS)
    assert activity.kernel_launches == 3
    assert activity.gpu_busy_ms == pytest.approx(3 + 1.5)


def test_a_copy_is_no_kernel_in_a_graph_captured_before_the_profiler_either() -> None:
    """Names as one H200 gave them of an image of a process's first level, and of its second."""
    first = [kernel(name, 7_000_000, 7_100_000, 9) for name in ("memcpy128", "memcpy32_post")]
    later = [kernel("Memcpy DtoD (Device -> Device)", 7_000_000, 7_100_000, 9)] * 2
    counted = [gpu_activity([*EVENTS, *copies], MARKS).kernel_launches for copies in (first, later)]
    assert counted == [3, 3]


def test_the_engines_kernels_and_all_graphs_are_counted() -> None:
    names = ("sdopt_convolution", "sdopt_layer_norm", SOLVER)
    own = [kernel(name, 7_000_000, 7_100_000, 9) for name in names]
    activity = gpu_activity([*EVENTS, *own, launch("cudaGraphLaunch", 410, 9)], MARKS)
    assert (activity.own_kernels, activity.fused_kernels, activity.graph_launches) == (2, 2, 2)


@pytest.mark.parametrize("file", ["kernels.py", "specialized.py"])
def test_every_kernel_of_the_engine_is_known_by_name(file: str) -> None:
    tree = ast.parse(Path(engine.__file__).with_name(file).read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    launched = {name for name in functions if not name.startswith("_")}
    assert launched
    assert all(name.startswith(OWN) for name in launched)


def test_an_image_in_one_graph_has_no_loop_on_the_host() -> None:
    activity = gpu_activity(EVENTS, [])
    assert (activity.host_syncs, activity.calls, activity.kernel_launches) == (0, (), 3)


def test_only_waits_inside_the_denoising_loop_count() -> None:
    assert gpu_activity(EVENTS, MARKS).host_syncs == 1


@pytest.mark.parametrize(
    ("intervals", "total"),
    [
        ([], 0),
        ([(1, 3), (2, 4)], 3),
        ([(5, 6), (1, 2)], 2),
        ([(1, 9), (2, 3), (8, 10)], 9),
    ],
)
def test_busy_is_the_union(intervals: list[tuple[int, int]], total: int) -> None:
    assert busy_ns(intervals) == total


def test_marked_regions_are_no_work_of_the_gpu() -> None:
    def event(name: str, device: str, annotation: bool = False) -> Any:
        return SimpleNamespace(
            name=lambda: name,
            start_ns=lambda: 1,
            end_ns=lambda: 2,
            device_type=lambda: f"DeviceType.{device}",
            correlation_id=lambda: 7,
            is_user_annotation=lambda: annotation,
        )

    raw = [event("k", "CUDA"), event("mark 1", "CUDA"), event("other", "CUDA", annotation=True)]
    results = SimpleNamespace(events=lambda: raw)
    assert events_of(results, ("mark",)) == [
        Event(name="k", start=1, end=2, on_gpu=True, correlation=7)
    ]
