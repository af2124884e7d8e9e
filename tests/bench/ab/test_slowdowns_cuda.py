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


def held_after(pipeline: LevelPipeline, images: int = 1) -> int:
    """Bytes of the device that stay taken when the images are done."""
    for _ in range(images):
        generate(pipeline, EMBEDDED_REQUESTS[0])
    return torch.cuda.memory_allocated()


def test_a_share_of_the_peak_is_held_once_and_adds_to_it(pipeline: LevelPipeline) -> None:
    before = held_after(pipeline)
    torch.cuda.reset_peak_memory_stats()
    held_after(pipeline)
    peak = torch.cuda.max_memory_allocated()
    undo = inject(pipeline, "memory:0.5", image_ms=1.0)
    held = held_after(pipeline, images=3) - before
    assert held == pytest.approx(peak / 2, abs=2**20)
    assert torch.cuda.max_memory_allocated() == pytest.approx(peak + peak / 2, abs=2**20)
    undo()
    assert torch.cuda.memory_allocated() == before


def test_each_image_leaks(pipeline: LevelPipeline) -> None:
    before = held_after(pipeline)
    undo = inject(pipeline, "leak:64", image_ms=1.0)
    assert held_after(pipeline) - before == 64 * 2**20
    assert held_after(pipeline) - before == 2 * 64 * 2**20
    undo()
    assert torch.cuda.memory_allocated() == before
