"""Memory is read around exactly one image, in MiB, and never invented on the CPU."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdopt.bench.measure import Memory, cuda_memory, memory
from sdopt.bench.measure.gpu_state import Watch
from sdopt.levels import BASELINE
from sdopt.pipelines.pipeline import build
from sdopt.pipelines.workload import Request
from sdopt.weights.sources import Source


def test_the_cpu_has_no_figure(micro_source: Source, micro_request: Request) -> None:
    assert memory(build(micro_source, BASELINE, torch.device("cpu")), micro_request) is None


def test_the_peaks_are_those_of_one_image(
    micro_request: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    counters = {
        "synchronize": None,
        "reset_peak_memory_stats": None,
        "mem_get_info": (24 * 2**20, 64 * 2**20),
        "max_memory_allocated": 3 * 2**19,
        "max_memory_reserved": 2 * 2**20,
    }

    def standing_in_for(name: str) -> Any:
        def counter(device: torch.device) -> Any:
            done.append(name)
            return counters[name]

        return counter

    for name in counters:
        monkeypatch.setattr(torch.cuda, name, standing_in_for(name))
    monkeypatch.setattr(cuda_memory, "generate", lambda *_: done.append("image"))
    monkeypatch.setattr(cuda_memory, "watched", lambda _: nullcontext(Watch()))
    pipeline: Any = SimpleNamespace(device=torch.device("cuda"))
    assert memory(pipeline, micro_request) == Memory(
        peak_allocated_mib=1.5, peak_reserved_mib=2.0, device_used_mib=40.0
    )
    around = ["synchronize", "reset_peak_memory_stats", "image", "synchronize"]
    assert done[: len(around)] == around
    assert done.count("image") == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: real counters")
def test_an_image_takes_memory(micro_source: Source, micro_request: Request) -> None:
    pipeline = build(micro_source, replace(BASELINE, steps=2), torch.device("cuda"))
    found = memory(pipeline, micro_request)
    assert found is not None
    assert 0 < found.peak_allocated_mib <= found.peak_reserved_mib <= found.device_used_mib
