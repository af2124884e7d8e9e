"""What is compiled is compiled whole, once for each shape, and shared by like models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from micro import Rung
from own_code import of_library, own_code

from sdopt.bench.measure import observe
from sdopt.bench.measure.observation import compiled_graphs
from sdopt.levels import LEVELS
from sdopt.pipelines.compilation import compile_decoder, compile_unet
from sdopt.pipelines.workload import Request


class TinyUNet(torch.nn.Module):
    def __init__(self, breaks: bool = False) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.breaks = breaks

    def forward(self, sample: Any, timestep: Any, scale: float = 1.0) -> Any:
        if self.breaks:
            torch._dynamo.graph_break()
        return self.layer(sample) + timestep * scale


# Whatever is of no known package runs eagerly, since it may do anything at each call.
of_library(TinyUNet)


class TinyVae(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = torch.nn.Linear(2, 2)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[tuple[int, ...], torch.dtype]]]:
    """Shape of the sample and type of the timestep of each graph that is compiled.

    Dynamo traces as ever; the C++ compiler is spared.
    """
    compile_with_inductor, found = torch.compile, []

    def backend(graph: Any, inputs: list[torch.Tensor]) -> Any:
        shapes = [tuple(value.shape) for value in inputs if value.dim() > 1]
        types = [value.dtype for value in inputs if value.dim() == 0]
        found.append((shapes, types))
        return graph.forward

    monkeypatch.setattr(
        torch, "compile", lambda model, **how: compile_with_inductor(model, backend=backend, **how)
    )
    with own_code():
        yield found


@torch.no_grad()
def test_the_type_of_the_timestep_does_not_part_graphs(graphs: list[Any]) -> None:
    unet = TinyUNet()
    sample = torch.ones(2, 2)
    wanted = unet(sample, torch.tensor(7.0))
    compile_unet(unet)
    for timestep in (torch.tensor(7.0), torch.tensor(7), torch.tensor(7, dtype=torch.int32), 7):
        torch.testing.assert_close(unet(sample, timestep), wanted)
    assert len(graphs) == 1
    assert graphs[0][1] == [torch.float32]


@torch.no_grad()
def test_each_batch_size_has_a_graph_of_its_own(graphs: list[Any]) -> None:
    unet = TinyUNet()
    compile_unet(unet)
    for batch in (2, 1, 2, 3, 1):
        unet(torch.ones(batch, 2), 1)
    assert [shapes[0][0] for shapes, _ in graphs if shapes] != []
    assert len(graphs) == 3


@torch.no_grad()
def test_models_that_look_alike_share_a_graph_and_keep_their_weights(graphs: list[Any]) -> None:
    unets = TinyUNet(), TinyUNet()
    sample = torch.ones(2, 2)
    wanted = [unet(sample, torch.tensor(1.0)) for unet in unets]
    for unet, expected in zip(unets, wanted, strict=True):
        compile_unet(unet)
        torch.testing.assert_close(unet(sample, 1), expected)
    assert len(graphs) == 1


def test_a_graph_break_in_the_unet_is_an_error() -> None:
    unet = TinyUNet(breaks=True)
    compile_unet(unet)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="graph_break"):
        unet(torch.ones(2, 2), 1)


@torch.no_grad()
def test_the_decoder_is_compiled_in_place(graphs: list[Any]) -> None:
    vae = TinyVae()
    latents = torch.ones(1, 2)
    wanted = vae.decoder(latents)
    compile_decoder(vae)
    torch.testing.assert_close(vae.decoder(latents), wanted)
    assert len(graphs) == 1


@pytest.mark.slow
def test_the_ladder_compiles_each_shape_once(ladder: dict[str, Rung]) -> None:
    cache = {name: rung.first.compile_cache for name, rung in ladder.items()}
    fresh = [name for name, where in cache.items() if where in ("cold", "warm")]
    # UNet of batch 2 and the VAE; the Tiny VAE; UNet of batch 1; the engine's latents, whose layout
    # is channels-last.
    assert fresh == ["compiled", "compiled-tiny-vae", "euler-20-cutoff", "one-graph"]
    eager = [name for name, where in cache.items() if where == "eager"]
    assert eager == [name for name, level in LEVELS.items() if not level.compiled]


@pytest.mark.slow
def test_switching_levels_compiles_nothing(ladder: dict[str, Rung], micro_request: Request) -> None:
    before = compiled_graphs()
    for name in ("euler-20", "dpm-20", "euler-20", "final", "baseline", "dpm-20-cutoff"):
        assert observe(ladder[name].pipeline, micro_request).new_graphs == 0
    assert compiled_graphs() == before
    assert {name: rung.seen.new_graphs for name, rung in ladder.items()} == dict.fromkeys(LEVELS, 0)
