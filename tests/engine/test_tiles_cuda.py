"""On a GPU every stored tile gives the same bits each time, and whole images are as steady.

Skipped without one. On a Hopper GPU the tiles take about two minutes, an image of an engine's level
half a minute, and the compiled level two minutes the first time:
`pytest tests/engine/test_tiles_cuda.py`, or `-k` with the kind of an operation or a level.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from sdopt.bench.evaluation.prompts import scene_prompts
from sdopt.engine.cards import H100, card_of
from sdopt.engine.tables import convolution_tile, tuned
from sdopt.engine.tiles import Tile, convolution_key
from sdopt.levels import LEVELS
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.workload import EMBEDDED_REQUESTS, Request, generate_batch
from sdopt.tuning.compiling import Compilers, Verdicts, make_of, verdict
from sdopt.tuning.jobs import CONVOLUTIONS, Job, job_of_key
from sdopt.tuning.repeats import beside_other_work, prove
from sdopt.weights.sources import resolve

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs CUDA: operations repeated beside other work"
)
PROMPT, OTHER = (request.prompt for request in EMBEDDED_REQUESTS[:2])
REPEATS = 40
"""Half of them idle, half beside a busy second stream."""
IMAGES = 6
BATCH, BATCHES = 32, 60
"""As an evaluation has them."""
ENGINE_LEVELS = [level.name for level in LEVELS.values() if level.whole_graph]
COMPILED_LEVEL = "compiled"
STORED = [key for key, tile in tuned().items() if not tile.library]
RACING = "upsample 2x32x32x640-640", Tile(height=8, width=16, columns=128, stages=3, warps=8)
"""Measured on an H100 with Triton 3.6: each of 196 repeats differed."""


def takes(tile: Tile) -> bool:
    """Whether this GPU takes such a tile; asked where there is one."""
    return not tile.specialized or card_of(torch.device("cuda")).specialized


def larger_batches() -> Iterator[tuple[str, Tile]]:
    """Convolutions of twice as many images without a tile of their own: less split ones."""
    for key in STORED:
        kind, rest = key.split()
        if kind not in CONVOLUTIONS:
            continue
        sizes, n = rest.split("-")
        images, height, width, c = map(int, sizes.split("x"))
        larger = (2 * images, height, width, c)
        tile = convolution_tile(larger, int(n), kind, H100)
        name = convolution_key(larger, int(n), kind)
        if name not in tuned() and not tile.library:
            yield name, tile


LARGER = list(larger_batches())


@pytest.fixture(scope="module")
def verdicts() -> Verdicts:
    """All kernels compiled beforehand, side by side, and whether their machine code has a race."""
    work = [*((key, tuned()[key]) for key in STORED), *LARGER]
    with Compilers(max(1, (os.cpu_count() or 2) - 1), card_of(torch.device("cuda"))) as compilers:
        return compilers.check((job_of_key(key), [tile]) for key, tile in work if takes(tile))


def check(job: Job, tile: Tile, verdicts: Verdicts) -> None:
    if not takes(tile):
        pytest.skip("needs CUDA: a Hopper GPU and a Triton that compiles Gluon's kernels")
    assert verdicts[make_of(job, tile)] == ""
    proof = prove(job, tile, torch.device("cuda"), REPEATS)
    assert proof.repeats == REPEATS
    assert proof.passed, f"{job.key}, {tile}: {proof}"


@needs_cuda
@pytest.mark.parametrize("key", STORED)
def test_a_stored_tile_gives_the_same_bits_and_the_right_ones(key: str, verdicts: Verdicts) -> None:
    check(job_of_key(key), tuned()[key], verdicts)


@needs_cuda
@pytest.mark.parametrize(("key", "tile"), LARGER, ids=lambda one: str(one)[:40])
def test_so_does_the_tile_of_a_batch_without_its_own(
    key: str, tile: Tile, verdicts: Verdicts
) -> None:
    check(job_of_key(key), tile, verdicts)


@needs_cuda
def test_a_tile_that_races_is_seen_to_differ() -> None:
    """Where this Triton compiles it to machine code with a race, so that repeats can show one."""
    job, tile = job_of_key(RACING[0]), RACING[1]
    if not verdict(job, tile, card_of(torch.device("cuda"))).startswith("races"):
        pytest.skip("needs CUDA: a Hopper GPU and a Triton before 3.9, where this tile races")
    proof = prove(job, tile, torch.device("cuda"), REPEATS)
    assert proof.differing > 0, str(proof)
    assert not proof.passed


def images(pipeline: LevelPipeline, seed: int, count: int, **more: Any) -> list[Any]:
    return [
        pipeline(
            PROMPT,
            negative_prompt=OTHER,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            **more,
        ).images
        for _ in range(count)
    ]


def check_images(pipeline: LevelPipeline, **more: Any) -> None:
    """All of one seed alike, also after another one; and images of something."""
    first, *others = images(pipeline, 0, IMAGES, **more)
    (other,) = images(pipeline, 1, 1, **more)
    others += images(pipeline, 0, 1, **more)
    assert np.isfinite(first).all()
    assert first.std() > 0
    assert not np.array_equal(other, first)
    worst = max(float(np.abs(one - first).max()) for one in others)
    assert all(np.array_equal(one, first) for one in others), f"differ by up to {worst:.3g}"


@needs_cuda
@pytest.mark.parametrize("name", [*ENGINE_LEVELS, COMPILED_LEVEL])
def test_images_of_one_seed_are_bit_identical(name: str) -> None:
    """And no kernel of the engine that generated them has a race, as this Triton made it."""
    from sdopt.engine import proof

    with proof.kernels_launched() as kernels:
        pipeline = build(resolve("sd15-random"), LEVELS[name], torch.device("cuda"))
        check_images(pipeline)
    assert len(kernels) >= 20 * LEVELS[name].fused
    assert [str(hazard) for kernel in kernels for hazard in proof.hazards(kernel)] == []
    del pipeline
    gc.collect()
    torch.cuda.empty_cache()


@needs_cuda
@pytest.mark.parametrize("name", [name for name in ENGINE_LEVELS if LEVELS[name].fused])
def test_batches_of_the_miniature_are_bit_identical(name: str) -> None:
    """Alone and beside other work: most of their kernels are cut by rule, and never proved."""
    source = resolve("embedded")
    pipeline = build(source, LEVELS[name], torch.device("cuda"))
    texts = scene_prompts(BATCH, source).texts
    requests = [Request(name=str(i), prompt=text, seed=i) for i, text in enumerate(texts)]
    first = generate_batch(pipeline, requests)
    differing: list[tuple[int, int]] = []
    for repeat in range(BATCHES):
        with beside_other_work() if repeat % 2 else nullcontext():
            again = generate_batch(pipeline, requests)
        for index, (one, other) in enumerate(zip(first, again, strict=True)):
            differing += [] if np.array_equal(one, other) else [(repeat, index)]
    assert differing == [], "(repeat, image) that differ from the first time"


def test_so_they_are_on_the_cpu() -> None:
    """The same check of the miniature, as far as a machine without a GPU can go."""
    pipeline = build(resolve("embedded"), LEVELS["turbo"], torch.device("cpu"))
    check_images(pipeline, num_inference_steps=2, height=64, width=64)


def test_images_that_differ_are_told_apart() -> None:
    images = iter(range(100))

    class Unsteady:
        images: Any = None

        def __call__(self, *_: object, **__: object) -> Unsteady:
            self.images = np.full((1, 2, 2, 3), next(images) / 100.0)
            self.images[0, 0, 0, 0] = 1.0
            return self

    with pytest.raises(AssertionError, match=r"differ by up to 0\.07"):
        check_images(Unsteady())  # type: ignore[arg-type]
