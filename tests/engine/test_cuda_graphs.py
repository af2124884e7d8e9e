"""A captured function gives what the function gives, for every shape, and forgets moved weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import torch
from lora import lora
from torch import Tensor

from sdopt.engine import cuda_graphs
from sdopt.engine.cuda_graphs import GraphedFunction, eager_calls
from sdopt.levels import LEVELS
from sdopt.pipelines.pipeline import build
from sdopt.pipelines.workload import EMBEDDED_REQUESTS
from sdopt.weights.sources import resolve

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


class FakeGraph:
    """Replays by computing the outputs anew from the static inputs, into the same place."""

    def __init__(self, run: Callable[[], Tensor], output: Tensor) -> None:
        self.run, self.output = run, output

    def replay(self) -> None:
        self.output.copy_(self.run())


class OnTheCpu(GraphedFunction):
    """The same bookkeeping with a capture that needs no GPU."""

    captures = 0

    def _can_capture(self, tensors: Any) -> bool:
        return bool(tensors)

    def _capture(self, leaves: list[Any], structure: Any) -> Any:
        self.captures += 1
        static = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = torch.utils._pytree.tree_unflatten(static, structure)
        output = self.function(*args, **kwargs).clone()
        graph: Any = FakeGraph(lambda: self.function(*args, **kwargs), output)
        inputs = [leaf for leaf in static if isinstance(leaf, Tensor)]
        return cuda_graphs._Captured(graph=graph, inputs=inputs, outputs=output)


WEIGHT = torch.full((3,), 2.0)


def scaled(x: Tensor, *, plus: float = 0.0) -> Tensor:
    return x * WEIGHT + plus


def test_each_shape_type_layout_and_option_is_captured_once() -> None:
    graphed = OnTheCpu(scaled, [WEIGHT])
    inputs = [
        (torch.ones(3), 0.0),
        (torch.ones(2, 3), 0.0),
        (torch.ones(3, dtype=torch.float64), 0.0),
        (torch.ones(3, 2).T, 0.0),
        (torch.ones(3), 1.0),
    ]
    for _ in range(2):
        for x, plus in inputs:
            torch.testing.assert_close(graphed(x, plus=plus), scaled(x, plus=plus))
    assert graphed.captures == len(inputs)


def test_outputs_are_safe_to_keep() -> None:
    graphed = OnTheCpu(scaled, [WEIGHT])
    first = graphed(torch.ones(3))
    graphed(torch.zeros(3))
    assert first.tolist() == [2.0] * 3


def test_a_weight_that_moved_drops_the_graphs_that_read_its_old_place() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    graphed = OnTheCpu(lambda x: x * weight.detach(), [weight])
    graphed(torch.ones(3))
    weight.data = torch.full((3,), 5.0)
    assert graphed(torch.ones(3)).tolist() == [5.0] * 3
    assert graphed.captures == 2


def test_only_so_many_graphs_are_kept_the_latest_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 2)
    graphed = OnTheCpu(scaled, [WEIGHT])
    for batch in (1, 2, 1, 3, 1):
        graphed(torch.ones(batch, 3))
    assert graphed.captures == 3
    graphed(torch.ones(2, 3))
    assert graphed.captures == 4


def test_while_it_is_watched_nothing_is_replayed() -> None:
    graphed = OnTheCpu(scaled, [WEIGHT])
    with eager_calls():
        graphed(torch.ones(3))
    assert graphed.captures == 0
    graphed(torch.ones(3))
    assert graphed.captures == 1


def test_the_cpu_and_gradients_are_left_alone() -> None:
    graphed = GraphedFunction(scaled, [WEIGHT])
    x = torch.ones(3, requires_grad=True)
    graphed(x).sum().backward()
    assert x.grad is not None
    assert len(graphed.graphs) == 0


@needs_cuda
@torch.no_grad()
def test_replays_on_the_gpu_equal_the_function() -> None:
    layer = torch.nn.Conv2d(4, 4, 3, padding=1).cuda().half()
    graphed = GraphedFunction(layer.forward, list(layer.parameters()))
    for batch in (2, 1, 2, 1):
        x = torch.randn(batch, 4, 8, 8, device="cuda", dtype=torch.float16)
        torch.testing.assert_close(graphed(x), layer(x))
    assert len(graphed.graphs) == 2
    x = torch.randn(1, 4, 8, 8, device="cuda")
    layer.float()
    torch.testing.assert_close(graphed(x), layer(x))


@needs_cuda
@torch.no_grad()
def test_after_its_weights_moved_a_function_is_captured_anew() -> None:
    layer = torch.nn.Conv2d(4, 4, 3, padding=1).cuda().half()
    graphed = GraphedFunction(layer.forward, list(layer.parameters()))
    x = torch.randn(2, 4, 8, 8, device="cuda", dtype=torch.float16)
    for _ in range(3):
        torch.testing.assert_close(graphed(x), layer(x))
        layer.weight.data = layer.weight.data * 2
    assert len(graphed.graphs) == 1


@needs_cuda
@torch.no_grad()
def test_a_graph_keeps_the_workspace_that_it_was_captured_with() -> None:
    """Freed elsewhere, it became other tensors' memory, which replays wrote to."""
    rows, inner = 64, 1 << 16  # a sum so long that cuBLAS splits it
    weight = torch.randn(inner, rows, device="cuda", dtype=torch.float16)
    x = torch.randn(rows, inner, device="cuda", dtype=torch.float16)
    first, second = (GraphedFunction(lambda x: x @ weight, [weight]) for _ in range(2))
    first(x)
    expected = second(x)
    first.forget()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    free = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    taken = [torch.ones(1 << 20, device="cuda") for _ in range(64 + (free >> 22))]
    assert torch.equal(second(x), expected)
    assert all(bool((one == 1).all()) for one in taken)


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_no_workspace_of_cublas_is_found_or_left_by_a_capture(
    error: type[Exception] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    @contextmanager
    def graph(*_: Any, **options: Any) -> Iterator[None]:
        done.append(f"begin {options}")
        try:
            yield
        finally:
            done.append("end")

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(
        torch._C, "_cuda_clearCublasWorkspaces", lambda: done.append("clear"), raising=False
    )
    own: Any = object()
    with suppress(RuntimeError), cuda_graphs.capturing(own, "pool", mode="any"):
        done.append("captured")
        if error:
            raise error
    assert done == ["clear", "begin {'pool': 'pool', 'mode': 'any'}", "captured", "end", "clear"]


@needs_cuda
@torch.no_grad()
def test_a_graphs_memory_goes_with_it() -> None:
    def hungry(x: Tensor) -> Tensor:
        return (x.repeat(1024, 1024) * 2).sum(1)

    torch._C._cuda_clearCublasWorkspaces()  # a capture frees those of earlier tests
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    graphed = GraphedFunction(hungry, [])
    graphed(torch.ones(4, 4, device="cuda"))
    assert torch.cuda.memory_reserved() > before
    del graphed
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == before


@needs_cuda
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
@pytest.mark.parametrize("level", ["dpm-20", "final"])
def test_what_is_done_to_a_compiled_level_after_an_image_is_generated(level: str) -> None:
    """Replays ignored all of this; `test_pipeline_features.py` has every feature."""
    pipeline = build(resolve("embedded"), LEVELS[level], torch.device("cuda"))

    def generate() -> Any:
        seed = torch.Generator().manual_seed(1)
        request = EMBEDDED_REQUESTS[0]
        return pipeline(request.prompt, generator=seed, output_type="np").images

    def is_generated(changed: bool = True) -> None:
        found = generate()
        with eager_calls():
            called = generate()
        apart = np.abs(found - called).max()
        assert apart == 0.0, f"a replay and a call of the same code are {apart} apart"
        moved = np.abs(found - before).max()
        assert (moved > 0.0) == changed, f"{moved} from the image before"

    before = generate()
    is_generated(changed=False)  # not a question of what is done, but it has to hold first
    pipeline.load_lora_weights(lora(pipeline), adapter_name="one")
    is_generated()
    pipeline.unload_lora_weights()
    is_generated(changed=False)
    pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    is_generated()
    pipeline.disable_freeu()
    is_generated(changed=False)
    handle = pipeline.unet.mid_block.register_forward_hook(lambda m, args, output: output * 1.5)
    is_generated()
    handle.remove()
    is_generated(changed=False)
    layer = pipeline.unet.conv_out
    layer.weight = torch.nn.Parameter(layer.weight.detach() * 1.5)
    is_generated()
