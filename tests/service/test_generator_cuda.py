"""On a GPU: what is warm never captures again, and pixels are copied into pinned shared memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdopt.levels import get_level
from sdopt.pipelines.pipeline import build
from sdopt.service.generator import PipelineGenerator
from sdopt.service.memory import Slots, anonymous_file
from sdopt.service.queueing import Kind
from sdopt.service.settings import Shape
from sdopt.service.worker import Wanted
from sdopt.weights.sources import Source

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: graphs")
SIDE = 64


def kind(steps: int) -> Kind:
    return Kind(width=SIDE, height=SIDE, steps=steps, guidance_scale=7.5)


def wanted(seed: int, pixels: np.ndarray | None = None) -> Wanted:
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8) if pixels is None else pixels
    return Wanted(prompt="a cat", negative_prompt="", seed=seed, pixels=pixels)


def test_no_warm_request_captures_and_strange_ones_have_a_pipeline_of_their_own(
    micro_source: Source,
) -> None:
    generator = PipelineGenerator(build(micro_source, get_level("turbo"), torch.device("cuda")))
    slots = Slots(anonymous_file(), 8, 3 * SIDE * SIDE)
    generator.warm([Shape(width=SIDE, height=SIDE, steps=20)], 2, slots.bytes)
    engine = generator.pipeline.engine
    assert engine is not None
    captures = engine.captures
    assert captures == 2
    assert torch.from_numpy(slots.bytes).is_pinned()
    in_slot = wanted(1, slots.pixels(3, SIDE, SIDE))
    first, second = generator.begin(kind(20), [in_slot]), generator.begin(kind(20), [wanted(2)])
    assert first() == second() == [True]
    assert in_slot.pixels.any()
    generator.begin(kind(2), [wanted(1)])()
    assert engine.captures == captures
    assert generator._pipeline_of(kind(2)) is not generator.pipeline
