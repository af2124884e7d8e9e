"""Watching an image tells what ran, changes nothing, and leaves no trace behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from micro import LATENT_PX, TEXT_WIDTH, WIDTH, Rung

from sdopt.bench.measure import observe
from sdopt.bench.measure.observation import is_channels_last, parts
from sdopt.levels import BASELINE, FINAL, FUSED, LEVELS, TURBO
from sdopt.miniature.tokenizer import MAX_TOKENS
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.workload import Request, generate
from sdopt.weights.sources import Source

PLAIN = replace(BASELINE, steps=2)


@pytest.fixture
def pipeline(micro_source: Source) -> LevelPipeline:
    return build(micro_source, PLAIN)


def test_calls_carry_part_shapes_and_dtype(pipeline: LevelPipeline, micro_request: Request) -> None:
    seen = observe(pipeline, micro_request)
    latents = (4, LATENT_PX, LATENT_PX)
    text = (1, MAX_TOKENS)
    unet = ((2, *latents), (), (2, MAX_TOKENS, TEXT_WIDTH))
    assert [(call.part, call.shapes, call.dtype, call.graphs) for call in seen.calls] == [
        ("text_encoder", (text,), "int64", 0),
        ("text_encoder", (text,), "int64", 0),
        ("unet", unet, "float32", 0),
        ("unet", unet, "float32", 0),
        ("decoder", ((1, *latents),), "float32", 0),
    ]
    assert (seen.scheduler_class, seen.scheduler_steps) == ("EulerAncestralDiscreteScheduler", 2)
    assert seen.decoder_class == "AutoencoderKL"
    assert seen.channels_last == {"unet": False, "decoder": False}
    assert seen.tf32 == (False, False)
    assert seen.new_graphs == 0


def test_settings_of_a_tuned_level_are_seen(micro_source: Source, micro_request: Request) -> None:
    level = replace(FINAL, compiled=False, steps=5, cfg_cutoff=0.4)
    seen = observe(build(micro_source, level), micro_request)
    assert seen.unet_batches == (2, 2, 2, 1, 1)
    assert seen.channels_last == {"unet": True, "decoder": True}
    assert seen.tf32 == (True,) * 5
    assert seen.scheduler_algorithm == "dpmsolver++"
    assert seen.decoder_class == "AutoencoderTiny"


def test_an_image_of_the_engine_is_seen_call_by_call(
    micro_source: Source, micro_request: Request
) -> None:
    level = replace(TURBO, steps=5, cfg_cutoff=0.4)
    pipeline = build(micro_source, level)
    seen = observe(pipeline, micro_request)
    assert [call.part for call in seen.calls] == [
        *("text_encoder", "unet", "unet", "unet", "shallow", "unet", "decoder")
    ]
    assert [call.fused for call in seen.calls] == [1] * 7
    assert seen.unet_batches == (2, 2, 2, 1, 1)
    assert seen.full_steps == (0, 1, 2, 4)
    assert (seen.by_engine, seen.scheduler_steps) == (True, 5)
    assert (seen.contexts, seen.embeddings, seen.wholes) == (1, 1, 4)
    assert seen.calls_of("text_encoder")[0].shapes == ((2, MAX_TOKENS),)
    deep = seen.calls_of("shallow")[0].shapes[-1]
    assert deep == (1, LATENT_PX, LATENT_PX, WIDTH)


def test_keys_and_values_that_are_not_hoisted_are_counted_at_each_step(
    micro_source: Source, micro_request: Request
) -> None:
    pipeline = build(micro_source, replace(FUSED, steps=3))
    seen = [observe(pipeline, micro_request) for _ in range(2)]
    assert [(one.contexts, one.embeddings, one.wholes) for one in seen] == [(3, 3, 3)] * 2
    assert [one.scheduler_steps for one in seen] == [3, 3]


def test_diffusers_own_loop_is_not_the_engines(
    pipeline: LevelPipeline, micro_request: Request
) -> None:
    seen = observe(pipeline, micro_request)
    assert (seen.by_engine, seen.contexts, seen.embeddings, seen.wholes) == (False, 0, 0, 0)
    assert seen.full_steps == (0, 1)


def hooks(pipeline: LevelPipeline) -> list[object]:
    modules = parts(pipeline).values()
    left = [hook for m in modules for hook in (*m._forward_hooks, *m._forward_pre_hooks)]
    return [*left, *(["step"] if "step" in vars(pipeline.scheduler) else [])]


def test_nothing_is_left_behind(pipeline: LevelPipeline, micro_request: Request) -> None:
    before = generate(pipeline, micro_request)
    observe(pipeline, micro_request)
    assert hooks(pipeline) == []
    assert np.array_equal(generate(pipeline, micro_request), before)


def test_nothing_is_left_behind_after_an_error(
    pipeline: LevelPipeline, micro_request: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "step_callback", fail, raising=False)
        with pytest.raises(MemoryError, match="no more"):
            observe(pipeline, micro_request)
    assert hooks(pipeline) == []
    assert observe(pipeline, micro_request).scheduler_steps == 2


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (torch.nn.Conv2d(2, 2, 3), False),
        (torch.nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last), True),
        # Both layouts at once, so neither is proved.
        (torch.nn.Conv2d(2, 2, 1).to(memory_format=torch.channels_last), False),
        (torch.nn.Conv2d(1, 2, 3).to(memory_format=torch.channels_last), False),
        (torch.nn.Linear(2, 2), False),
    ],
)
def test_is_channels_last(module: torch.nn.Module, expected: bool) -> None:
    assert is_channels_last(module) is expected


@pytest.mark.slow
def test_compiled_calls_run_one_graph_each(ladder: dict[str, Rung]) -> None:
    seen = ladder["final"].seen
    assert {call.graphs for call in seen.calls if call.part != "text_encoder"} == {1}
    assert {call.graphs for call in seen.calls_of("text_encoder")} == {0}
    assert seen.unet_batches == LEVELS["final"].unet_batches()
