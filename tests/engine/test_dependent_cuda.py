"""On a GPU kernels that are started early compute the same bits; one that does not wait is seen.

Skipped without one; `pytest tests/engine/test_dependent_cuda.py` on a Hopper GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdopt.engine import dependent
from sdopt.engine.cards import Card, card_of
from sdopt.engine.tiles import Tile
from sdopt.levels import LEVELS
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.workload import EMBEDDED_REQUESTS
from sdopt.tuning.repeats import beside_other_work
from sdopt.weights.sources import resolve

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or not card_of(torch.device("cuda")).dependent,
    reason="needs CUDA: a Hopper GPU or a newer one",
)
PROMPT, OTHER = (request.prompt for request in EMBEDDED_REQUESTS[:2])
REPEATS, IMAGES = 40, 8
LENGTH = 40
"""Operations of a chain, each of which reads what the one before wrote, in memory used again."""


def half(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * 0.1).to("cuda", torch.float16)


def chain(rows: int, width: int) -> Callable[[], Tensor]:
    """LayerNorm, product, split product, norm and epilogue in turn, over other weights each."""
    from sdopt.engine import launch

    x = half(rows, width, seed=0)
    weights = [half(width, width, seed=seed) for seed in range(LENGTH)]
    one, zero = torch.ones(width, device="cuda").half(), torch.zeros(width, device="cuda").half()
    small = Tile(height=64, width=1, columns=64, stages=3)
    specialized = Tile(height=64, width=1, columns=64, specialized=True)
    if not card_of(torch.device("cuda")).specialized:
        specialized = small
    split = Tile(height=64, width=1, columns=64, stages=3, splits=4)

    def run() -> Tensor:
        h = x
        for number, weight in enumerate(weights):
            tile = (small, specialized, split)[number % 3]
            normed = launch.layer_norm(h, one, zero, 1e-5)
            h = launch.matrix_product(normed, weight, zero, tile, residual=h)
            if number % 5 == 4:
                image = h.reshape(1, rows, 1, width)
                h = launch.group_norm(image, one, zero, 32, 1e-5, silu=True).reshape(rows, width)
                h = launch.apply_epilogue(h, zero, x)
        return h

    return run


def captured(run: Callable[[], Tensor]) -> tuple[Any, Tensor]:
    with dependent.launches(card_of(torch.device("cuda")).dependent):
        stream: Any = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run()
    return graph, out


@pytest.mark.parametrize(("rows", "width"), [(128, 1280), (512, 640), (8192, 320)])
def test_a_chain_has_the_bits_of_kernels_one_after_the_other(rows: int, width: int) -> None:
    run = chain(rows, width)
    wanted = run()
    graph, out = captured(run)
    for repeat in range(REPEATS):
        out.fill_(float("nan"))
        with beside_other_work() if repeat % 2 else nullcontext():
            graph.replay()
        assert torch.equal(out, wanted), f"repeat {repeat}"


def test_a_kernel_that_does_not_wait_is_seen_to_read_too_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So edges of the graph do let kernels overlap, and the chains above tell something."""
    from slow_kernel import copy_slowly

    from sdopt.engine import kernels, launch

    x, nothing = half(64, 64, seed=0), torch.zeros(64, 64, device="cuda").half()

    def ended() -> Tensor:
        copied = torch.empty_like(x)
        copy_slowly[(1,)](x, copied, 1.0, ROUNDS=2**14, SIZE=x.numel())
        return launch.apply_epilogue(copied, None, nothing)

    def differing() -> int:
        graph, out = captured(ended)
        count = 0
        for repeat in range(REPEATS):
            x.neg_()
            graph.replay()
            count += not torch.equal(out, wanted[repeat % 2])
        return count

    wanted = [-x, x.clone()]
    assert differing() == 0

    kernel = kernels.sdopt_epilogue
    launched = type(kernel).__getitem__

    def without_wait(self: Any, grid: Any) -> Any:
        run = launched(self, grid)
        if self is not kernel:
            return run
        return lambda *given, **how: run(*given, **{**how, "DEPENDENT": False})

    monkeypatch.setattr(type(kernel), "__getitem__", without_wait)
    assert differing() > 0


def images(pipeline: LevelPipeline, count: int) -> list[Any]:
    found = []
    for number in range(count):
        with beside_other_work() if number % 2 else nullcontext():
            generator = torch.Generator().manual_seed(0)
            made = pipeline(PROMPT, negative_prompt=OTHER, generator=generator, output_type="np")
        found.append(made.images)
    return found


@pytest.mark.parametrize("name", ["turbo", "hoisted", "express-float8"])
def test_images_have_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with kernels one after the other, over repeats beside other work."""
    from sdopt.engine import proof

    if LEVELS[name].float8 and not card_of(torch.device("cuda")).specialized:
        pytest.skip("needs CUDA: a Hopper GPU, for float8")
    source, wanted = resolve("embedded"), None
    for can in (False, True):
        monkeypatch.setattr(Card, "dependent", can)
        with proof.kernels_launched() as kernels:
            pipeline = build(source, LEVELS[name], torch.device("cuda"))
            found = images(pipeline, IMAGES)
        assert (True in {kernel.metadata.launch_pdl for kernel in kernels}) == can
        assert not any(proof.hazards(kernel) for kernel in kernels)
        wanted = found[0] if wanted is None else wanted
        assert all(np.array_equal(one, wanted) for one in found), can
        del pipeline
        gc.collect()
        torch.cuda.empty_cache()
