"""Compiled levels generate any number of sizes and batches in one process, each compiled once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import torch
from own_code import of_library, own_code

from sdopt.bench.measure.observation import compiled_graphs
from sdopt.levels import FINAL, ONE_GRAPH
from sdopt.pipelines import shapes
from sdopt.pipelines.compilation import compile_unet
from sdopt.pipelines.pipeline import build
from sdopt.pipelines.shapes import compiled_by_shapes
from sdopt.weights.sources import Source

ASKED = [((64, 64), 1), ((64, 128), 1), ((128, 64), 1), ((64, 64), 3)]
"""Sizes and batches: square, wide, tall with as many pixels, and several images."""
MANY = 12
"""More than the eight that Dynamo allows a code object."""


class TinyUNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, sample: Any, timestep: Any, scale: float = 1.0) -> Any:
        return self.layer(sample).sin() + timestep * scale


# Whatever is of no known package runs eagerly, since it may do anything at each call.
of_library(TinyUNet)


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    with own_code():
        yield


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo traces, guards and counts as ever; the C++ compiler is spared."""
    compiles = torch.compile

    def light(function: Any, **how: Any) -> Any:
        del how["mode"]
        return compiles(function, backend="eager", **how)

    monkeypatch.setattr(torch, "compile", light)


def sample(rows: int) -> torch.Tensor:
    return torch.linspace(-1, 1, 2 * rows).reshape(rows, 2)


@torch.no_grad()
@pytest.mark.usefixtures("traced_only")
def test_plain_compilation_ends_at_the_ninth_shape() -> None:
    """What `compiled_by_shapes` is for; once torch counts otherwise it may go."""
    compiled = torch.compile(
        shapes.copy_of(TinyUNet.forward), fullgraph=True, dynamic=False, mode=""
    )  # type: ignore[arg-type]
    unet = TinyUNet()
    for rows in range(2, 10):
        compiled(unet, sample(rows), 1)
    for rows in (10, 11):
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            compiled(unet, sample(rows), 1)


@torch.no_grad()
def test_any_number_of_shapes_is_compiled_by_inductor_once_each() -> None:
    unets = TinyUNet(), TinyUNet()
    wanted = [[unet(sample(rows), 1) for rows in range(1, MANY + 1)] for unet in unets]
    for unet in unets:
        compile_unet(unet)
    before = compiled_graphs()
    for rows in (*range(1, MANY + 1), *range(MANY, 0, -1)):
        for unet, expected in zip(unets, wanted, strict=True):
            torch.testing.assert_close(unet(sample(rows), 1), expected[rows - 1])
    assert compiled_graphs() - before == MANY


@torch.no_grad()
@pytest.mark.usefixtures("traced_only")
def test_only_the_latest_shapes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "MOST_KEPT", 3)
    unet = TinyUNet()
    compile_unet(unet)
    before = compiled_graphs()
    codes = []
    for rows in (1, 2, 3, 1, 4):
        unet(sample(rows), 1)
        codes.append(weakref.ref(next(reversed(shapes._kept.values()))[0].__code__))
    assert (compiled_graphs() - before, len(shapes._kept)) == (4, 3)
    unet(sample(1), 1)
    unet(sample(4), 1)
    assert compiled_graphs() - before == 4
    gc.collect()
    assert [code() is None for code in codes] == [False, True, False, False, False]
    unet(sample(2), 1)
    assert compiled_graphs() - before == 5


@torch.no_grad()
@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("limit", ["recompile_limit", "accumulated_recompile_limit"])
def test_variants_of_one_shape_beyond_the_limit_begin_anew(limit: str) -> None:
    unet, plain = TinyUNet(), TinyUNet()
    plain.load_state_dict(unet.state_dict())
    compile_unet(unet)
    with torch._dynamo.config.patch({limit: 3}):
        for scale in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 1.0):
            found = unet(sample(2), 1, scale=scale)
            torch.testing.assert_close(found, plain(sample(2), 1, scale=scale))
        before = compiled_graphs()
        unet(sample(2), 1, scale=1.0)
        assert compiled_graphs() == before


def test_an_error_of_the_function_is_its_own() -> None:
    def failing(value: torch.Tensor) -> torch.Tensor:
        raise KeyError("mine")

    assert isinstance(failing, FunctionType)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled_by_shapes(failing, "default")(torch.ones(1))


def generated(pipeline: Any, size_px: tuple[int, int], images: int = 1) -> Any:
    seeds = [torch.Generator().manual_seed(seed) for seed in range(images)]
    height, width = size_px
    return pipeline(
        ["a cat"] * images, height=height, width=width, generator=seeds, output_type="np"
    ).images


@pytest.mark.slow
@pytest.mark.usefixtures("traced_only")
def test_two_levels_generate_many_sizes_and_batches_and_compile_each_once(
    micro_source: Source,
) -> None:
    """Each costs seconds of tracing, so Dynamo's limit is 2 here instead of 8."""
    levels = [replace(level, steps=2) for level in (FINAL, ONE_GRAPH)]
    pipelines = [build(micro_source, level) for level in levels]
    eager = [build(micro_source, replace(level, compiled=False)) for level in levels]
    with torch._dynamo.config.patch(recompile_limit=2):
        for pipeline, plain in zip(pipelines, eager, strict=True):
            for size_px, images in ASKED:
                found = generated(pipeline, size_px, images)
                np.testing.assert_allclose(found, generated(plain, size_px, images), atol=1e-4)
        before = compiled_graphs()
        for pipeline in pipelines:
            for size_px, images in reversed(ASKED):
                generated(pipeline, size_px, images)
    assert compiled_graphs() == before
    assert len(shapes._kept) <= shapes.MOST_KEPT
