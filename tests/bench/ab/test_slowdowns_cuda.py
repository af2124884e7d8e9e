"""On a GPU: memory that a fault holds or leaks, to the MiB, and that goes when it is undone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sdopt.bench.ab.slowdowns import inject
from sdopt.levels import BASELINE, HOISTED
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.workload import EMBEDDED_REQUESTS, generate
from sdopt.weights.sources import resolve

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: its memory")


@pytest.fixture(scope="module", params=[BASELINE, HOISTED], ids=lambda level: level.name)
def pipeline(request: pytest.FixtureRequest) -> LevelPipeline:
    level = replace(request.param, steps=3)
    return build(resolve("embedded"), level, torch.device("cuda"))


@pytest.mark.parametrize(("fault", "stays"), [("memory:0.5", 0), ("leak:64", 64)])
def test_memory_is_held_or_leaked(fault: str, stays: int, pipeline: LevelPipeline) -> None:
    request = EMBEDDED_REQUESTS[0]
    generate(pipeline, request)
    before = torch.cuda.memory_allocated()
    undo = inject(pipeline, fault, image_ms=1.0)
    generate(pipeline, request)
    assert (torch.cuda.memory_allocated() - before) // 2**20 == stays
    undo()
    assert torch.cuda.memory_allocated() == before
