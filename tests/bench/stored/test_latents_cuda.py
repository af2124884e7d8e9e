"""Final latents, repeats and promises on a GPU, where the engine's are read beside a graph.

Skipped without one; `pytest tests/bench/stored/test_latents_cuda.py` takes a minute or two.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdopt.bench.faults.numerics import numeric_faults, racing_stand_in
from sdopt.bench.measure import broken_promises, observe, promise_of
from sdopt.bench.measure.double import double_latents
from sdopt.bench.measure.latents import generate_with_latents
from sdopt.bench.measure.repeat import repeat_of
from sdopt.engine.cuda_graphs import eager_calls
from sdopt.levels import LEVELS
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.workload import EMBEDDED_REQUESTS, generate
from sdopt.weights.sources import resolve

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs CUDA: the engine's graphs"
)
FIRST, SECOND = EMBEDDED_REQUESTS[:2]
OFF = {"hoisted": 0.01, "turbo": 0.01, "baseline": 0.01}


@pytest.fixture(scope="module", params=["turbo", "hoisted", "baseline"])
def pipeline(request: pytest.FixtureRequest) -> LevelPipeline:
    return build(resolve("embedded"), LEVELS[request.param], torch.device("cuda"))


def test_a_graphs_latents_are_those_that_became_its_image(pipeline: LevelPipeline) -> None:
    """The decoder's own memory may not lie over them, nor those of the request before remain."""
    generate_with_latents(pipeline, SECOND)
    for request in (FIRST, SECOND, FIRST):
        generated = generate_with_latents(pipeline, request)
        with eager_calls():
            assert np.array_equal(
                generated.latents, generate_with_latents(pipeline, request).latents
            )
        latents = torch.from_numpy(generated.latents)[None].to("cuda", pipeline.unet.dtype)
        with torch.no_grad():
            decoded = pipeline.vae.decode(latents, return_dict=False)[0]
        image = (decoded.float() * 0.5 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).cpu().numpy()
        assert np.abs(image - generated.image).max() < OFF[pipeline.level.name]


def test_six_images_are_the_same_to_the_bit(pipeline: LevelPipeline) -> None:
    first = generate_with_latents(pipeline, FIRST)
    for _ in range(5):
        assert repeat_of(FIRST.name, first, generate_with_latents(pipeline, FIRST)).is_exact


def test_solver_and_noise_are_the_promised_ones(pipeline: LevelPipeline) -> None:
    promise = promise_of(pipeline.source, pipeline.level, FIRST, "float16")
    assert broken_promises(promise, observe(pipeline, FIRST)) == ()


def test_nothing_generates_in_float64(pipeline: LevelPipeline) -> None:
    assert double_latents(pipeline, FIRST) is None


def test_faults_of_the_solver_and_the_noise_are_named(pipeline: LevelPipeline) -> None:
    promise = promise_of(pipeline.source, pipeline.level, FIRST, "float16")
    before = generate(pipeline, FIRST)
    for fault in numeric_faults(pipeline.level.name, "float16"):
        if fault.caught_by != "effect" or ("heun" in fault.name and pipeline.engine is None):
            continue
        with fault.inject(pipeline) as faulty:
            found = broken_promises(promise, observe(faulty, FIRST))
        assert any(fault.says in sentence for sentence in found), (fault.name, found)
    assert np.array_equal(generate(pipeline, FIRST), before)


def test_a_race_is_seen(pipeline: LevelPipeline) -> None:
    if pipeline.engine is not None:
        pytest.skip("needs a level without the engine: its graphs do not count calls on the host")
    with racing_stand_in(pipeline):
        assert not repeat_of(
            "race", generate_with_latents(pipeline, FIRST), generate_with_latents(pipeline, FIRST)
        ).is_exact
