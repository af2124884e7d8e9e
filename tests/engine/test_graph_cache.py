"""One cache keeps the graphs of both users: those used last, in one pool, until they change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sdopt.engine import image
from sdopt.engine.captured import Captured, Inputs, Kind
from sdopt.engine.cuda_graphs import GraphCache, GraphedFunction
from sdopt.engine.fingerprint import differing
from sdopt.engine.image import ImageEngine
from sdopt.engine.stages import HostTick
from sdopt.levels import TURBO
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.weights.sources import Source

CPU = torch.device("cpu")


class Cuda:
    """What a cache asks of the device, noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pools = self.waits = 0
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", self._pool)
        monkeypatch.setattr(torch.cuda, "synchronize", self._wait)

    def _pool(self) -> tuple[int, int]:
        self.pools += 1
        return (0, self.pools)

    def _wait(self) -> None:
        self.waits += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda(monkeypatch)


def test_a_graph_is_captured_once_and_the_longest_unused_one_goes() -> None:
    cache: GraphCache[str] = GraphCache(2)
    captured: list[str] = []

    def get(key: str) -> str:
        def capture() -> str:
            captured.append(key)
            return key.upper()

        return cache.get(key, capture)

    assert [get(key) for key in "abacab"] == list("ABACAB")
    assert captured == ["a", "b", "c", "b"]
    assert (list(cache.kept), len(cache), "c" in cache) == (["a", "b"], 2, False)


def test_a_capture_that_fails_leaves_the_others() -> None:
    cache: GraphCache[int] = GraphCache(1)
    cache.get("a", lambda: 1)
    with pytest.raises(ZeroDivisionError):
        cache.get("b", lambda: 1 // 0)
    assert list(cache.kept) == ["a"]


def test_all_share_a_pool_until_they_are_dropped(cuda: Cuda) -> None:
    cache: GraphCache[int] = GraphCache(2)
    first = cache.pool()
    assert cache.pool() is first
    cache.forget()
    assert (cache.pool(), cuda.pools) == ((0, 2), 2)


def test_the_device_is_waited_for_if_there_are_graphs_to_drop(cuda: Cuda) -> None:
    cache: GraphCache[int] = GraphCache(2)
    cache.forget()
    assert cuda.waits == 0
    cache.get("a", lambda: 1)
    cache.forget()
    assert (cuda.waits, len(cache)) == (1, 0)


class FakeGraph:
    """Replays by computing anew, into the same place."""

    def __init__(self, run: Callable[[], Tensor], output: Tensor) -> None:
        self.run, self.output = run, output

    def replay(self) -> None:
        self.output.copy_(self.run())


class FakeEvent:
    def record(self) -> None:
        pass

    def wait(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class OnTheCpu(ImageEngine):
    """The same bookkeeping with a capture that needs no GPU."""

    def _capture(self, inputs: Inputs, kind: Kind) -> Captured:
        static = inputs.on(CPU)
        flag = torch.zeros((), dtype=torch.uint8)
        self.captures += 1

        def run() -> Tensor:
            flag.copy_(differing(self._parts.fingerprints))
            return self._run(static, kind, [])

        graph: Any = FakeGraph(run, run())
        return Captured(
            graph=graph,
            inputs=static,
            image=graph.output,
            latents=self.latents,
            ticks=[HostTick()],
            factors=inputs.factors,
            flag=flag,
            looked=FakeEvent(),
        )


@pytest.fixture
def pipeline(micro_source: Source, monkeypatch: pytest.MonkeyPatch) -> LevelPipeline:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(image, "MOST_GRAPHS", 2)
    return build(micro_source, replace(TURBO, compiled=False), CPU)


def inputs_of(engine: ImageEngine, steps: int, seed: int) -> tuple[Inputs, Kind]:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 8, 8, 4, generator=generator)
    ids = torch.randint(0, 9, (2, 32), generator=generator)
    times, factors = engine.schedule.on(CPU, engine.owner.scheduler, steps, 5.0)
    kind = Kind(1, 8, 8, 32, steps, engine.level.guided_steps(steps))
    return Inputs(ids=ids, noise=noise, factors=factors, times=times), kind


@torch.no_grad()
def test_the_engine_replays_a_kind_that_it_has_and_keeps_the_latest(
    pipeline: LevelPipeline,
) -> None:
    engine = OnTheCpu(pipeline=pipeline, level=pipeline.level)
    for steps, seed, captures in ((2, 1, 1), (2, 2, 1), (3, 1, 2), (2, 3, 2), (4, 1, 3), (2, 1, 3)):
        inputs, kind = inputs_of(engine, steps, seed)
        found = engine._replay_checked(inputs, kind)
        assert engine.captures == captures
        assert torch.equal(found, engine._run(inputs, kind, []))
    assert [kind.steps for kind in engine.graphs.kept] == [4, 2]  # type: ignore[attr-defined]


def write(weight: Tensor) -> None:
    weight.mul_(4)


def write_unseen(weight: Tensor) -> None:
    weight.data.mul_(4)


@torch.no_grad()
@pytest.mark.parametrize("change", [write, write_unseen])
def test_the_engine_drops_its_graphs_when_weights_or_the_scheduler_change(
    change: Callable[[Tensor], None], pipeline: LevelPipeline
) -> None:
    engine = OnTheCpu(pipeline=pipeline, level=pipeline.level)
    first, kind = inputs_of(engine, 2, 1)
    before = engine._replay_checked(first, kind)
    change(pipeline.unet.mid_block.attentions[0].proj_out.weight)
    changed = engine._replay_checked(first, kind)
    assert engine.captures == 2
    assert not torch.equal(changed, before)
    config = {"use_karras_sigmas": True}
    pipeline.register_modules(
        scheduler=type(pipeline.scheduler).from_config(pipeline.scheduler.config, **config)
    )
    engine._check_parts(replayed=True)
    assert len(engine.graphs) == 0
    assert not torch.equal(inputs_of(engine, 2, 1)[0].times, first.times)


def test_both_users_have_the_same_cache(pipeline: LevelPipeline) -> None:
    engine = ImageEngine(pipeline=pipeline, level=pipeline.level)
    function = GraphedFunction(lambda x: x, [])
    assert type(engine.graphs) is type(function.graphs) is GraphCache
    assert engine.graphs.most == 2
