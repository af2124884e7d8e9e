"""A level that silently runs as its base is caught: each proof fails when its effect is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from types import MethodType
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
from micro import Rung

from sdopt.bench.measure import Observation, missing_effects, observe
from sdopt.bench.measure.gpu_activity import GpuActivity, GpuCall
from sdopt.bench.measure.observation import parts
from sdopt.levels import (
    BASELINE,
    COMPILED,
    FINAL,
    FUSED,
    HOISTED,
    LEVELS,
    SWIFT,
    TURBO,
    TURBO_FLOAT8,
    Level,
)
from sdopt.pipelines import pipeline as building
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.settings import process_settings
from sdopt.pipelines.workload import Request
from sdopt.weights.sources import Source

PLAIN = replace(BASELINE, steps=2)
EAGER_FINAL = replace(FINAL, compiled=False, steps=5, cfg_cutoff=0.4)
SHORT_FUSED = replace(FUSED, steps=2)
SHORT_HOISTED = replace(HOISTED, steps=2)
SHORT_SWIFT = replace(SWIFT, steps=5, cfg_cutoff=0.4)
SHORT_TURBO = replace(TURBO, steps=5, cfg_cutoff=0.4)
SHORT_FLOAT8 = replace(TURBO_FLOAT8, steps=5, cfg_cutoff=0.4)


def missing(level: Level, pipeline: LevelPipeline, request: Request) -> tuple[str, ...]:
    return missing_effects(level, observe(pipeline, request), "float32")


@pytest.mark.parametrize(
    "level",
    [PLAIN, EAGER_FINAL, SHORT_FUSED, SHORT_HOISTED, SHORT_SWIFT, SHORT_TURBO, SHORT_FLOAT8],
    ids=lambda level: str(level.name),
)
def test_an_eager_level_took_effect(
    level: Level, micro_source: Source, micro_request: Request
) -> None:
    assert missing(level, build(micro_source, level), micro_request) == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", LEVELS)
def test_every_level_took_effect(name: str, ladder: dict[str, Rung]) -> None:
    assert missing_effects(LEVELS[name], ladder[name].seen, "float32") == ()


LEFT_OUT = {
    building.apply_decoder: (
        EAGER_FINAL,
        ("decoder: it is AutoencoderKL, the level wants AutoencoderTiny",),
    ),
    building.apply_channels_last: (
        EAGER_FINAL,
        (
            "memory format: the unet's weights are not channels-last, "
            "the level wants channels_last=True",
            "memory format: the decoder's weights are not channels-last, "
            "the level wants channels_last=True",
        ),
    ),
    building.apply_scheduler: (
        PLAIN,
        (
            "scheduler: it is PNDMScheduler, the level wants EulerAncestralDiscreteScheduler",
            "steps: the scheduler made 3, the level wants 2",
            "UNet evaluations: batch sizes 3 x 2, the level wants 2 x 2",
        ),
    ),
    building.apply_cfg_cutoff: (
        EAGER_FINAL,
        ("UNet evaluations: batch sizes 5 x 2, the level wants 3 x 2 + 2 x 1",),
    ),
    building.apply_compiled: (
        replace(COMPILED, steps=2),
        (
            "compile: Inductor code ran in 0 of 2 unet calls, the level wants 2",
            "compile: Inductor code ran in 0 of 1 decoder calls, the level wants 1",
        ),
    ),
    building.apply_fused: (
        SHORT_FUSED,
        (
            "fused: the engine's forward pass ran in 0 of 1 text_encoder calls, the level wants 1",
            "fused: the engine's forward pass ran in 0 of 2 unet calls, the level wants 2",
            "fused: the engine's forward pass ran in 0 of 1 decoder calls, the level wants 1",
            "hoisted: keys and values of the prompts were computed 0 times, the level wants 2",
            "hoisted: time embeddings were computed 0 times, the level wants 2",
            "fused: the whole UNet was computed 0 times, the level wants 2",
        ),
    ),
    building.apply_whole_graph: (
        SHORT_FUSED,
        ("engine: it generated the image: False, the level wants True",),
    ),
}


@pytest.mark.parametrize("apply", building.APPLY, ids=lambda apply: str(apply.__name__))
def test_leaving_out_one_apply_is_named(
    apply: Callable[[LevelPipeline, Level], None],
    micro_source: Source,
    micro_request: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    level, expected = LEFT_OUT[apply]
    monkeypatch.setattr(building, "APPLY", tuple(a for a in building.APPLY if a is not apply))
    assert missing(level, build(micro_source, level), micro_request) == expected


def full_vae(pipeline: LevelPipeline) -> None:
    pipeline.register_modules(
        vae=AutoencoderKL.from_pretrained(pipeline.source.folder / "vae").to(
            memory_format=torch.channels_last
        )
    )


def dpm_solver(**changes: Any) -> Callable[[LevelPipeline], None]:
    def swap(pipeline: LevelPipeline) -> None:
        scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, **changes)
        pipeline.register_modules(scheduler=scheduler)

    return swap


def unet_contiguous(pipeline: LevelPipeline) -> None:
    pipeline.unet.to(memory_format=torch.contiguous_format)


def one_convolution_contiguous(pipeline: LevelPipeline) -> None:
    pipeline.vae.decoder.to(memory_format=torch.channels_last)
    layer = next(m for m in pipeline.vae.decoder.modules() if isinstance(m, torch.nn.Conv2d))
    layer.to(memory_format=torch.contiguous_format)


def unet_channels_last(pipeline: LevelPipeline) -> None:
    pipeline.unet.to(memory_format=torch.channels_last)


def half(pipeline: LevelPipeline) -> None:
    pipeline.to(torch.bfloat16)


def one_step_more(pipeline: LevelPipeline) -> None:
    pipeline.level = replace(pipeline.level, steps=pipeline.level.steps + 1)


def cutoff_later(pipeline: LevelPipeline) -> None:
    pipeline.step_callback = building.cutoff_callback(0.6)


def no_cutoff(pipeline: LevelPipeline) -> None:
    pipeline.step_callback = None


def no_guidance(pipeline: LevelPipeline) -> None:
    pipeline.source = replace(pipeline.source, guidance_scale=1.0)


def no_engine(pipeline: LevelPipeline) -> None:
    pipeline.engine = None


def engine_of(**changes: Any) -> Callable[[LevelPipeline], None]:
    """The engine generates as if the level were another."""

    def change(pipeline: LevelPipeline) -> None:
        assert pipeline.engine is not None
        pipeline.engine.level = replace(pipeline.engine.level, **changes)

    return change


def wide(pipeline: LevelPipeline) -> None:
    fused: Any = pipeline.fused_unet
    fused.float8.weights.clear()
    fused.float8.factors.clear()


def full_at(*steps: int) -> Callable[[LevelPipeline], None]:
    """The engine computes as many whole UNets as it should, at other steps."""

    class Elsewhere(Level):
        def full_steps(self, *_: Any) -> tuple[int, ...]:
            return steps

    def change(pipeline: LevelPipeline) -> None:
        assert pipeline.engine is not None
        pipeline.engine.level = Elsewhere(**pipeline.level.as_dict())

    return change


def an_engine_on_top(pipeline: LevelPipeline) -> None:
    level = replace(pipeline.level, whole_graph=True)
    pipeline.engine = building.ImageEngine(pipeline=pipeline, level=level)


def unfused(part: str) -> Callable[[LevelPipeline], None]:
    """The module's own forward pass is back; it ignores what only the fused one takes."""

    def restore(pipeline: LevelPipeline) -> None:
        del parts(pipeline)[part].forward

    return restore


def decode_twice(pipeline: LevelPipeline) -> None:
    once = pipeline.vae.decode

    def twice(self: Any, *args: Any, **kwargs: Any) -> Any:
        once(*args, **kwargs)
        return once(*args, **kwargs)

    pipeline.vae.decode = MethodType(twice, pipeline.vae)


SABOTAGE = [
    (EAGER_FINAL, full_vae, "decoder: it is AutoencoderKL"),
    (PLAIN, decode_twice, "decoder: it was called 2 times, not once"),
    (PLAIN, dpm_solver(), "scheduler: it is DPMSolverMultistepScheduler (dpmsolver++, order 2)"),
    (
        EAGER_FINAL,
        dpm_solver(solver_order=1),
        "scheduler: it is DPMSolverMultistepScheduler (dpmsolver++, order 1)",
    ),
    (
        EAGER_FINAL,
        dpm_solver(algorithm_type="sde-dpmsolver++"),
        "scheduler: it is DPMSolverMultistepScheduler (sde-dpmsolver++, order 2)",
    ),
    (EAGER_FINAL, unet_contiguous, "memory format: the unet's weights are not channels-last"),
    (
        EAGER_FINAL,
        one_convolution_contiguous,
        "memory format: the decoder's weights are not channels-last",
    ),
    (PLAIN, unet_channels_last, "memory format: the unet's weights are channels-last"),
    (PLAIN, half, "dtype: the unet computed in ['bfloat16'], not float32"),
    (PLAIN, half, "dtype: the decoder computed in ['bfloat16'], not float32"),
    (PLAIN, one_step_more, "steps: the scheduler made 3, the level wants 2"),
    (PLAIN, one_step_more, "UNet evaluations: batch sizes 3 x 2, the level wants 2 x 2"),
    (EAGER_FINAL, no_cutoff, "UNet evaluations: batch sizes 5 x 2"),
    (EAGER_FINAL, cutoff_later, "UNet evaluations: batch sizes 4 x 2 + 1 x 1"),
    (PLAIN, no_guidance, "UNet evaluations: batch sizes 2 x 1"),
    (SHORT_FUSED, no_guidance, "UNet evaluations: batch sizes 2 x 1, the level wants 2 x 2"),
    (SHORT_FUSED, no_engine, "engine: it generated the image: False, the level wants True"),
    (EAGER_FINAL, an_engine_on_top, "engine: it generated the image: True, the level wants False"),
    *(
        (SHORT_FUSED, unfused(part), f"fused: the engine's forward pass ran in 0 of {n} {part}")
        for part, n in (("text_encoder", 1), ("unet", 2), ("decoder", 1))
    ),
    (
        SHORT_HOISTED,
        engine_of(hoisted=False),
        "hoisted: keys and values of the prompts were computed 2 times, the level wants 1",
    ),
    (
        SHORT_FUSED,
        engine_of(hoisted=True),
        "hoisted: keys and values of the prompts were computed 1 times, the level wants 2",
    ),
    (
        SHORT_FUSED,
        engine_of(hoisted=True),
        "hoisted: the equal halves of guidance were, as one, computed 2 times, the level wants 0",
    ),
    (
        SHORT_FLOAT8,
        wide,
        "float8: 0 products were, the level wants True",
    ),
    (
        SHORT_TURBO,
        engine_of(feature_cache=False),
        "UNet evaluations: steps 0, 1, 2, 3, 4 were full ones, the level wants 0, 1, 2, 4",
    ),
    (
        SHORT_SWIFT,
        engine_of(feature_cache=False, full_share=None),
        "UNet evaluations: steps 0, 1, 2, 3, 4 were full ones, the level wants 0, 2, 4",
    ),
    (
        SHORT_SWIFT,
        engine_of(full_share=None),
        "UNet evaluations: steps 0, 1, 2, 4 were full ones, the level wants 0, 2, 4",
    ),
    (
        SHORT_SWIFT,
        full_at(0, 1, 4),
        "UNet evaluations: steps 0, 1, 4 were full ones, the level wants 0, 2, 4",
    ),
    (SHORT_TURBO, engine_of(cfg_cutoff=None), "UNet evaluations: batch sizes 5 x 2"),
]


@pytest.mark.parametrize(
    ("level", "sabotage", "expected"), SABOTAGE, ids=[case[2] for case in SABOTAGE]
)
def test_an_effect_taken_away_is_named(
    level: Level,
    sabotage: Callable[[LevelPipeline], None],
    expected: str,
    micro_source: Source,
    micro_request: Request,
) -> None:
    pipeline = build(micro_source, level)
    sabotage(pipeline)
    named = missing(level, pipeline, micro_request)
    assert [sentence for sentence in named if sentence.startswith(expected)] != []


@pytest.mark.parametrize(("level", "wanted"), [(PLAIN, False), (EAGER_FINAL, True)])
def test_tf32_left_as_it_was_is_named(
    level: Level,
    wanted: bool,
    micro_source: Source,
    micro_request: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(building, "process_settings", lambda *of: contextlib.nullcontext())
    with process_settings(replace(level, tf32=not wanted), torch.device("cpu")):
        named = missing(level, build(micro_source, level), micro_request)
    assert named == (
        f"TF32: allowed during UNet calls: {{{not wanted}}}, the level wants {wanted}",
    )


def test_a_compiled_unet_that_never_ran_is_named(
    micro_source: Source, micro_request: Request
) -> None:
    level = replace(COMPILED, steps=2)
    pipeline = build(micro_source, level)
    del pipeline.unet.forward
    del pipeline.vae.decoder.forward
    assert missing(level, pipeline, micro_request) == LEFT_OUT[building.apply_compiled][1]


def test_a_disabled_dynamo_is_named(micro_source: Source, micro_request: Request) -> None:
    level = replace(COMPILED, steps=2)
    with torch.compiler.set_stance("force_eager"):
        named = missing(level, build(micro_source, level), micro_request)
    assert named == LEFT_OUT[building.apply_compiled][1]


@pytest.mark.slow
def test_a_warm_level_thrown_back_to_eager_is_named(
    ladder: dict[str, Rung], micro_request: Request
) -> None:
    with torch.compiler.set_stance("force_eager"):
        named = missing(LEVELS["final"], ladder["final"].pipeline, micro_request)
    assert named == (
        "compile: Inductor code ran in 0 of 20 unet calls, the level wants 20",
        "compile: Inductor code ran in 0 of 1 decoder calls, the level wants 1",
    )
    assert missing(LEVELS["final"], ladder["final"].pipeline, micro_request) == ()


@pytest.mark.slow
def test_a_graph_for_one_batch_size_only_is_named(
    ladder: dict[str, Rung], micro_request: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = ladder["final"].pipeline.unet
    compiled, eager = unet.forward, type(unet).forward

    def eager_when_unguided(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if sample.shape[0] == 2:
            return compiled(sample, *args, **kwargs)
        return eager(unet, sample, *args, **kwargs)

    monkeypatch.setattr(unet, "forward", eager_when_unguided)
    assert missing(LEVELS["final"], ladder["final"].pipeline, micro_request) == (
        "compile: Inductor code ran in 9 of 20 unet calls, the level wants 20",
    )


@pytest.mark.slow
def test_a_baseline_compiled_by_accident_is_named(ladder: dict[str, Rung]) -> None:
    level = replace(COMPILED, compiled=False)
    assert missing_effects(level, ladder["compiled"].seen, "float32") == (
        "compile: Inductor code ran in 30 of 30 unet calls, the level wants 0",
        "compile: Inductor code ran in 1 of 1 decoder calls, the level wants 0",
    )


def on_the_gpu(seen: Observation, fused: int, graphs: int) -> Observation:
    """The observation as if each call had launched so many Inductor kernels and CUDA graphs."""
    calls = tuple(
        GpuCall(part=call.part, kernels=9, fused_kernels=fused, graph_launches=graphs)
        for call in seen.calls
    )
    gpu = GpuActivity(kernel_launches=9, gpu_busy_ms=1.0, host_syncs=0, calls=calls)
    return replace(seen, gpu=gpu)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fused", "graphs", "complaints"),
    [
        (3, 1, []),
        (0, 1, ["Inductor kernels ran in 0 of 20 unet calls", "Inductor kernels ran in 0 of 1"]),
        (3, 0, ["one CUDA graph ran in 0 of 20 unet calls", "one CUDA graph ran in 0 of 1"]),
        (3, 2, ["one CUDA graph ran in 0 of 20 unet calls", "one CUDA graph ran in 0 of 1"]),
    ],
)
def test_on_cuda_compiled_kernels_really_run_in_one_graph_a_call(
    fused: int, graphs: int, complaints: list[str], ladder: dict[str, Rung]
) -> None:
    seen = on_the_gpu(ladder["final"].seen, fused, graphs)
    found = missing_effects(FINAL, seen, "float32")
    assert len(found) == len(complaints)
    for sentence, complaint in zip(found, complaints, strict=True):
        assert complaint in sentence


def test_on_cuda_an_eager_level_has_neither(micro_source: Source, micro_request: Request) -> None:
    seen = observe(build(micro_source, PLAIN), micro_request)
    assert missing_effects(PLAIN, on_the_gpu(seen, 0, 0), "float32") == ()
    assert len(missing_effects(PLAIN, on_the_gpu(seen, 1, 1), "float32")) == 4


def on_the_gpu_by_engine(seen: Observation, **found: int) -> Observation:
    """The observation as if the image had been such CUDA graphs and kernels."""
    activity = {"graph_launches": 1, "own_kernels": 0, "fused_kernels": 0, **found}
    gpu = GpuActivity(kernel_launches=9, gpu_busy_ms=1.0, host_syncs=0, calls=(), **activity)
    return replace(seen, gpu=gpu)


@pytest.mark.parametrize(
    ("found", "complaints"),
    [
        ({"own_kernels": 7}, []),
        ({"own_kernels": 0}, ["fused: 0 kernels of the engine ran, the level wants True"]),
        (
            {"own_kernels": 7, "graph_launches": 3},
            ["engine: 3 CUDA graphs were launched, the level wants one"],
        ),
        (
            {"own_kernels": 7, "graph_launches": 0},
            ["engine: 0 CUDA graphs were launched, the level wants one"],
        ),
        (
            {"own_kernels": 7, "fused_kernels": 5},
            ["compile: 5 Inductor kernels ran, compiled=False"],
        ),
    ],
)
def test_on_cuda_a_fused_image_is_one_graph_of_the_engines_kernels(
    found: dict[str, int], complaints: list[str], micro_source: Source, micro_request: Request
) -> None:
    seen = observe(build(micro_source, SHORT_FUSED), micro_request)
    named = missing_effects(SHORT_FUSED, on_the_gpu_by_engine(seen, **found), "float32")
    assert list(named) == complaints


def test_on_cuda_each_product_in_float8_is_such_a_kernel(
    micro_source: Source, micro_request: Request
) -> None:
    seen = observe(build(micro_source, SHORT_FLOAT8), micro_request)
    number = seen.float8_products
    assert number > 0

    def named(kernels: int) -> tuple[str, ...]:
        on_gpu = on_the_gpu_by_engine(seen, own_kernels=999, float8_kernels=kernels)
        return missing_effects(SHORT_FLOAT8, on_gpu, "float32")

    assert named(number) == ()
    assert named(number - 1) == (
        f"float8: {number - 1} of its kernels ran on the GPU for {number} products",
    )


def test_on_cuda_a_level_without_kernels_of_ours_must_have_none(
    micro_source: Source, micro_request: Request
) -> None:
    seen = on_the_gpu(observe(build(micro_source, PLAIN), micro_request), 0, 0)
    assert seen.gpu is not None
    stray = replace(seen, gpu=replace(seen.gpu, own_kernels=2))
    assert missing_effects(PLAIN, stray, "float32") == (
        "fused: 2 kernels of the engine ran, the level wants False",
    )


@pytest.mark.slow
def test_on_cuda_one_graph_runs_inductors_kernels_in_it(ladder: dict[str, Rung]) -> None:
    level, seen = LEVELS["one-graph"], ladder["one-graph"].seen
    inside = on_the_gpu_by_engine(seen, fused_kernels=9)
    assert missing_effects(level, inside, "float32") == ()
    eager = on_the_gpu_by_engine(seen, fused_kernels=0)
    assert missing_effects(level, eager, "float32") == (
        "compile: 0 Inductor kernels ran, compiled=True",
    )
