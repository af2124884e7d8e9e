"""Changes of a module that was compiled are followed through real compilation, not ignored."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from lora import lora
from own_code import of_library, own_code
from torch import Tensor

from sdopt.engine.cuda_graphs import GraphedFunction
from sdopt.levels import DPM_20
from sdopt.pipelines import shapes
from sdopt.pipelines.compilation import CompiledForward, compile_unet
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.weights.sources import Source

CPU = torch.device("cpu")
Compiled = list[Any]


class SparedTorch:
    """Dynamo traces as ever, whole and with guards; the C++ compiler is spared."""

    def __init__(self, graphs: Compiled) -> None:
        self.graphs = graphs

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def compile(self, function: Any, mode: str, **how: Any) -> Any:
        def backend(graph: Any, inputs: Any) -> Any:
            self.graphs.append(graph)
            return graph.forward

        return torch.compile(function, backend=backend, **how)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiled]:
    """What was compiled."""
    found: Compiled = []
    monkeypatch.setattr(shapes, "torch", SparedTorch(found))
    with own_code():
        yield found


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x) * self.factor
        return found


of_library(Inner)  # or it would be nobody's stock code


class Outer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, sample: Tensor, timestep: Any) -> Tensor:
        found: Tensor = self.inner(sample) + timestep
        return found


of_library(Outer)


@pytest.fixture
def outer() -> Outer:
    return Outer()


X = torch.ones(1, 2)


def plain(module: Outer) -> Tensor:
    return Outer.forward(module, X, torch.tensor(1.0))


def louder(module: Any, args: Any, output: Any) -> Any:
    return output * 2


def another_forward(module: Outer) -> None:
    own = module.inner.forward
    module.inner.forward = lambda x: own(x) * 2  # type: ignore[method-assign]


def another_parameter(module: Outer) -> None:
    module.inner.layer.weight = torch.nn.Parameter(module.inner.layer.weight.detach() * 2)


def moved_weight(module: Outer) -> None:
    module.inner.layer.weight.data = module.inner.layer.weight.data * 2


def written_weight(module: Outer) -> None:
    module.inner.layer.weight.data.mul_(2)


CHANGES: dict[str, Callable[[Outer], Any]] = {
    "attribute": lambda module: setattr(module.inner, "factor", 2.0),
    "hook": lambda module: module.inner.layer.register_forward_hook(louder),
    "hook that was one of another module": lambda module: module.inner.register_forward_hook(
        louder
    ),
    "forward": another_forward,
    "submodule": lambda module: setattr(module, "inner", Inner()),
    "parameter": another_parameter,
    "moved": moved_weight,
    "written": written_weight,
    "own class": lambda module: setattr(module.inner, "layer", torch.nn.Sequential()),
}


@pytest.mark.parametrize("name", CHANGES)
@torch.no_grad()
def test_a_change_after_the_first_call_is_followed(
    name: str, outer: Outer, graphs: Compiled
) -> None:
    before = plain(outer)
    compile_unet(outer)
    assert torch.equal(outer(X, 1), before)
    CHANGES[name](outer)
    assert torch.equal(outer(X, 1), plain(outer))
    assert not torch.equal(outer(X, 1), before)


@torch.no_grad()
def test_dynamo_alone_sees_no_hook(outer: Outer) -> None:
    """Why the module is watched: torch 2.13 guards on no hooks."""
    compiled = torch.compile(outer.forward, backend="eager", fullgraph=True)
    before = compiled(X, torch.tensor(1.0))
    outer.inner.layer.register_forward_hook(louder)
    assert torch.equal(compiled(X, torch.tensor(1.0)), before)
    assert not torch.equal(plain(outer), before)
    torch._dynamo.reset_code(Outer.forward.__code__)


@torch.no_grad()
def test_an_undone_change_compiles_nothing(outer: Outer, graphs: Compiled) -> None:
    compile_unet(outer)
    before = outer(X, 1)
    handle = outer.inner.register_forward_hook(louder)
    outer(X, 1)
    handle.remove()
    assert torch.equal(outer(X, 1), before)
    outer.inner.factor = 3.0
    outer(X, 1)
    assert len(graphs) == 2
    outer.inner.factor = 1.0
    assert torch.equal(outer(X, 1), before)
    assert len(graphs) == 2


@torch.no_grad()
def test_what_runs_python_at_each_call_is_neither_compiled_nor_captured(
    outer: Outer, graphs: Compiled, caplog: pytest.LogCaptureFixture
) -> None:
    compile_unet(outer)
    outer(X, 1)
    calls: list[int] = []
    outer.inner.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        outer(X, 1)
    assert len(calls) == 3
    assert len(graphs) == 1
    assert "runs eagerly, not compiled: the forward hook of a module, unet.inner" in caplog.text


@torch.no_grad()
def test_what_passes_for_a_classs_own_by_its_name_is_not_compiled(
    outer: Outer, graphs: Compiled
) -> None:
    calls: list[int] = []
    own = Inner.forward

    @wraps(own)
    def counting(*args: Any) -> Tensor:
        calls.append(1)
        return own(*args)

    compile_unet(outer)
    before = outer(X, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Inner, "forward", counting)
        other = Outer()
        compile_unet(other)
        for _ in range(3):
            assert torch.equal(outer(X, 1), before)
            other(X, 1)
    assert len(calls) == 6
    assert len(graphs) == 1
    assert torch.equal(outer(X, 1), before)


def test_gradients_come_from_compiled_code_and_from_no_replay(
    outer: Outer, graphs: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that is replayed would lose those of the weights, which are no inputs of it."""
    compile_unet(outer)
    asked: list[int] = []
    replay = GraphedFunction.__call__

    def noted(self: GraphedFunction, *args: Any, **kwargs: Any) -> Any:
        asked.append(1)
        return replay(self, *args, **kwargs)

    monkeypatch.setattr(GraphedFunction, "__call__", noted)
    outer(X, 1).sum().backward()
    assert not asked
    assert outer.inner.layer.weight.grad is not None
    with torch.no_grad():
        outer(X, 1)
    assert asked


@torch.no_grad()
def test_a_change_before_the_first_call_is_followed_beside_a_like_module(graphs: Compiled) -> None:
    """Whose compiled code it would share, since Dynamo guards on no hooks."""
    one, other = Outer(), Outer()
    compile_unet(one)
    one(X, 1)
    other.inner.register_forward_hook(louder)
    compile_unet(other)
    assert torch.equal(other(X, 1), plain(other))


def test_captured_graphs_are_dropped_and_their_memory_waited_for(
    outer: Outer, graphs: Compiled
) -> None:
    compiled = CompiledForward(outer, "default", "outer")
    run: Any = compiled._run
    for change in (moved_weight, CHANGES["attribute"]):
        run.graphs.kept["any"] = object()
        change(outer)
        compiled(X, torch.tensor(1.0))
        assert not run.graphs


FIRST_OF_A_PROCESS = """
import torch
from sdopt.engine.watch import Watch
from sdopt.pipelines import compilation

adapted = []
class Seen(compilation.CompiledForward):
    def _adapt(self, module):
        adapted.append(module)
        super()._adapt(module)

layer, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
watch = Watch([other])
forward = Seen(layer, "default", "layer")
for _ in range(2):
    forward(torch.ones(1, 2))
assert torch.nn.Module.__init__.__module__ == "torch._dynamo.mutation_guard"
print(len(adapted), watch.structure_changed())
"""


def test_the_first_compilation_of_a_process_is_no_change_of_its_modules() -> None:
    """Dynamo wraps `nn.Module.__init__` meanwhile, to tag modules that a forward pass makes.

    Taken for a change, it let the first step of the first image run other code than all later ones.
    """
    command = [sys.executable, "-c", FIRST_OF_A_PROCESS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]


@pytest.fixture
def pipeline(micro_source: Source, graphs: Compiled) -> LevelPipeline:
    return build(micro_source, DPM_20, CPU)


@torch.no_grad()
def predict(pipeline: LevelPipeline, **more: Any) -> Tensor:
    """What the compiled UNet says, which is what its class says."""
    unet = pipeline.unet
    sample = torch.linspace(-1, 1, 2 * 4 * 8 * 8).reshape(2, 4, 8, 8)
    text = torch.linspace(-1, 1, 2 * 5 * 16).reshape(2, 5, 16)
    given = {"encoder_hidden_states": text, "return_dict": False, **more}
    call = partial(type(unet).forward, unet)
    wanted: Tensor = call(sample, torch.tensor(7.0), **given)[0]
    found: Tensor = unet(sample, 7, **given)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    return found


def test_adapters_and_other_processors_are_compiled_whole(
    pipeline: LevelPipeline, graphs: Compiled
) -> None:
    """With `fullgraph`, so that no part of them is left out."""
    before = predict(pipeline)
    assert len(graphs) == 1
    pipeline.load_lora_weights(lora(pipeline, ("attn1.to_q", "conv_in")), adapter_name="one")
    full = predict(pipeline)
    scaled = predict(pipeline, cross_attention_kwargs={"scale": 0.3})
    assert not torch.allclose(full, before)
    assert not torch.allclose(full, scaled)
    assert torch.equal(predict(pipeline), full)
    assert len(graphs) == 3
    pipeline.set_adapters("one", 0.5)
    predict(pipeline)
    pipeline.unload_lora_weights()
    assert torch.equal(predict(pipeline), before)
    pipeline.unet.set_attn_processor(AttnProcessor())
    predict(pipeline)


def test_freeu_and_circular_padding_are_compiled_whole(
    pipeline: LevelPipeline, graphs: Compiled
) -> None:
    before = predict(pipeline)
    pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert not torch.allclose(predict(pipeline), before)
    pipeline.disable_freeu()
    predict(pipeline)
    for layer in pipeline.unet.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.padding_mode = "circular"
    assert not torch.allclose(predict(pipeline), before)
