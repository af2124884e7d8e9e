"""Counts of work are exact, the same on every machine, and catch recompiles and graph breaks."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from micro import LATENT_PX, TEXT_WIDTH, Rung
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sdopt.bench.judge.counts import changed_work
from sdopt.bench.judge.gate import Gate
from sdopt.bench.judge.verdict import Outcome
from sdopt.bench.measure import observe, work_of
from sdopt.bench.measure.gpu_activity import GpuActivity, GpuCall
from sdopt.bench.measure.work import WHOLE, flop_by_block
from sdopt.levels import BASELINE, FINAL, LEVELS, TURBO, Level
from sdopt.miniature.tokenizer import MAX_TOKENS
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.workload import Request, generate
from sdopt.weights.sources import Source

PLAIN = replace(BASELINE, steps=2)
EAGER_FINAL = replace(FINAL, compiled=False, steps=20, cfg_cutoff=0.4)
CACHED = replace(TURBO, steps=20, cfg_cutoff=0.4)


@pytest.fixture(scope="module")
def plain(micro_source: Source) -> LevelPipeline:
    return build(micro_source, PLAIN)


@torch.no_grad()
def counted_on_the_cpu(model: Any, *args: Any, **kwargs: Any) -> int:
    """With the math backend, whose matrix products the counter sees."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    return int(counter.get_total_flops())


def test_20_steps_of_which_9_are_guided_make_29_evaluations(
    micro_source: Source, micro_request: Request
) -> None:
    pipeline = build(micro_source, EAGER_FINAL)
    work = work_of(pipeline, observe(pipeline, micro_request))
    assert (work.unet_evaluations, work.recompiles, work.graph_breaks) == (29, 0, 0)


@pytest.mark.parametrize("level", [PLAIN, replace(EAGER_FINAL, steps=5)], ids=["plain", "final"])
def test_tflop_is_what_the_cpu_counts_with_visible_attention(
    level: Level, micro_source: Source, micro_request: Request
) -> None:
    pipeline = build(micro_source, level)
    work = work_of(pipeline, observe(pipeline, micro_request))
    latents = torch.zeros(1, 4, LATENT_PX, LATENT_PX)
    ids = torch.zeros(1, MAX_TOKENS, dtype=torch.long)
    expected = counted_on_the_cpu(pipeline.vae.decoder, latents)
    expected += 2 * counted_on_the_cpu(pipeline.text_encoder, ids)
    for batch in level.unet_batches():
        sample = latents.expand(batch, -1, -1, -1)
        text = torch.zeros(batch, MAX_TOKENS, TEXT_WIDTH)
        expected += counted_on_the_cpu(pipeline.unet, sample, 1, encoder_hidden_states=text)
    assert work.tflop == expected / 1e12


def test_tflop_does_not_depend_on_threads_or_layout(
    plain: LevelPipeline, micro_source: Source, micro_request: Request
) -> None:
    tuned = build(micro_source, replace(PLAIN, channels_last=True, tf32=True))
    threads = torch.get_num_threads()
    counts = []
    try:
        for pipeline, number in ((plain, 1), (plain, 3), (tuned, 2)):
            torch.set_num_threads(number)
            flop_by_block.cache_clear()
            counts.append(work_of(pipeline, observe(pipeline, micro_request)))
    finally:
        torch.set_num_threads(threads)
    assert counts == [counts[0]] * 3
    assert counts[0].tflop > 0


@pytest.mark.parametrize("level", [PLAIN, replace(EAGER_FINAL, steps=5)], ids=["plain", "final"])
def test_the_work_is_split_by_parts_and_their_blocks(
    level: Level, micro_source: Source, micro_request: Request
) -> None:
    pipeline = build(micro_source, level)
    work = work_of(pipeline, observe(pipeline, micro_request))
    assert work.calls == {"text_encoder": 2, "unet": level.steps, "decoder": 1}
    assert sum(work.tflop_by_module.values()) == pytest.approx(work.tflop, rel=1e-12)
    assert list(work.tflop_by_module) == sorted(work.tflop_by_module)
    assert min(work.tflop_by_module.values()) > 0
    of_the_unet = {name for name in work.tflop_by_module if name.startswith("unet.")}
    assert of_the_unet == {
        f"unet.{block}"
        for block in (
            *("conv_in", "time_embedding", "down_blocks.0", "down_blocks.1"),
            *("mid_block.attentions.0", "mid_block.resnets.0", "mid_block.resnets.1"),
            *("up_blocks.0", "up_blocks.1", "conv_out"),
        )
    }
    assert {name.split(".")[0] for name in work.tflop_by_module} == set(work.calls)


class Blocks(torch.nn.Module):
    """A decoder with numbered blocks, numbered modules inside them, and one without a number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.decoder = torch.nn.Module()
        inner = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Linear(width, width))
        self.decoder.layers = torch.nn.ModuleList([inner, torch.nn.Linear(width, width)])
        self.decoder.head = torch.nn.Linear(width, 1)
        self.decoder.forward = self._decode

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        for layer in self.decoder.layers:
            latents = layer(latents)
        return self.decoder.head(latents)

    @classmethod
    def from_config(cls, config: dict[str, int]) -> Blocks:
        return cls(**config)


def test_a_block_is_the_first_numbered_module_or_one_without() -> None:
    counted = flop_by_block(Blocks, '{"width": 4}', ((1, 4),))
    assert counted == {WHOLE: 32 + 32 + 32 + 8, "layers.0": 64, "layers.1": 32, "head": 8}


def test_a_skipped_step_is_named_by_part_and_block(
    plain: LevelPipeline, micro_source: Source, micro_request: Request
) -> None:
    before = work_of(plain, observe(plain, micro_request))
    shorter = build(micro_source, replace(PLAIN, steps=1))
    after = work_of(shorter, observe(shorter, micro_request))
    changes = changed_work(asdict(before), asdict(after))
    assert changes[0] == "unet called 2 -> 1 times"
    assert len(changes) == 1 + 10
    assert all(change.startswith("unet.") for change in changes[1:])


def test_without_a_gpu_its_counts_are_absent(plain: LevelPipeline, micro_request: Request) -> None:
    work = work_of(plain, observe(plain, micro_request))
    assert (work.kernel_launches, work.gpu_busy_ms, work.host_syncs) == (None, None, None)
    assert work.kernels_by_part is None


def test_kernels_are_split_by_part_and_what_ran_between_them(
    plain: LevelPipeline, micro_request: Request
) -> None:
    def call(part: str, kernels: int) -> GpuCall:
        return GpuCall(part=part, kernels=kernels, fused_kernels=0, graph_launches=0)

    gpu = GpuActivity(
        kernel_launches=100,
        gpu_busy_ms=1.5,
        host_syncs=2,
        calls=(call("unet", 30), call("unet", 31), call("decoder", 9)),
    )
    work = work_of(plain, replace(observe(plain, micro_request), gpu=gpu))
    assert work.kernels_by_part == {"text_encoder": 0, "unet": 61, "decoder": 9, "between": 30}
    assert (work.kernel_launches, work.gpu_busy_ms, work.host_syncs) == (100, 1.5, 2)


def full_evaluations(level: Level) -> int:
    """Samples that the whole UNet is evaluated for."""
    batches = level.unet_batches()
    return sum(batches[step] for step in level.full_steps())


def test_shallow_calls_of_turbo_are_counted_apart(
    micro_source: Source, micro_request: Request
) -> None:
    pipeline = build(micro_source, CACHED)
    work = work_of(pipeline, observe(pipeline, micro_request))
    assert work.unet_evaluations == 8
    assert work.calls == {"text_encoder": 1, "unet": 5, "shallow": 15, "decoder": 1}
    assert set(work.tflop_by_module) == {
        *("text_encoder.fused", "unet.context", "unet.fused", "shallow.fused", "decoder.fused")
    }
    assert sum(work.tflop_by_module.values()) == pytest.approx(work.tflop, rel=1e-12)
    full, shallow = work.tflop_by_module["unet.fused"], work.tflop_by_module["shallow.fused"]
    assert 0 < shallow / (6 * 2 + 9) < full / 8  # per sample


def test_a_shallow_call_of_plain_torch_is_counted_by_its_text(
    micro_source: Source, micro_request: Request
) -> None:
    pipeline = build(micro_source, CACHED)
    own, features = type(pipeline.unet).forward.__get__(pipeline.unet), torch.zeros(2, 8, 8, 8)

    def unfused(
        sample: Any, timestep: Any, encoder_hidden_states: Any, store: Any = None, **_: Any
    ) -> Any:
        noise = own(sample, timestep, encoder_hidden_states, return_dict=False)
        return (*noise, features[: len(sample)]) if store else noise

    pipeline.unet.forward = unfused
    work = work_of(pipeline, observe(pipeline, micro_request))
    assert (work.calls["unet"], work.calls["shallow"]) == (5, 15)
    flop: dict[str, Counter[str]] = {"unet": Counter(), "shallow": Counter()}
    for name, tflop in work.tflop_by_module.items():
        part, _, block = name.partition(".")
        flop.get(part, Counter())[block] += tflop
    # Both run the class's own forward pass: 8 samples in full calls, 21 in shallow ones.
    del flop["unet"]["context"]
    assert flop["shallow"].keys() == flop["unet"].keys()
    for block in flop["unet"].keys() - {"time_embedding"}:
        assert flop["shallow"][block] * 8 == pytest.approx(flop["unet"][block] * 21, rel=1e-9)


@pytest.mark.slow
def test_the_ladder_does_less_work_rung_by_rung(ladder: dict[str, Rung]) -> None:
    evaluations = {name: rung.work.unet_evaluations for name, rung in ladder.items()}
    assert evaluations == {name: full_evaluations(level) for name, level in LEVELS.items()}
    assert evaluations["final"] == evaluations["express"] > evaluations["turbo"]
    tflop = {name: rung.work.tflop for name, rung in ladder.items()}
    assert tflop["baseline"] == tflop["tuned"] == tflop["compiled"]
    assert tflop["compiled"] > tflop["compiled-tiny-vae"] > tflop["euler-20"] == tflop["dpm-20"]
    assert tflop["dpm-20"] > tflop["dpm-20-cutoff"] > tflop["final"]
    assert tflop["dpm-20"] == tflop["one-graph"] > tflop["fused"] > tflop["hoisted"]
    assert tflop["hoisted"] > tflop["hoisted-cutoff"] > tflop["express"] > tflop["turbo"]
    assert tflop["final"] > tflop["express"]


@pytest.mark.slow
def test_a_warm_ladder_recompiles_and_breaks_nothing(ladder: dict[str, Rung]) -> None:
    counts = {name: (rung.work.recompiles, rung.work.graph_breaks) for name, rung in ladder.items()}
    assert counts == dict.fromkeys(LEVELS, (0, 0))


def scale(latents: torch.Tensor) -> torch.Tensor:
    return latents * 0.5 + 1


def image_of(latents: torch.Tensor) -> torch.Tensor:
    return latents[:, :3].repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)


def broken(latents: torch.Tensor) -> torch.Tensor:
    latents = scale(latents)
    torch._dynamo.graph_break()
    return image_of(latents)


@pytest.mark.slow
def test_a_graph_break_is_counted(micro_source: Source, micro_request: Request) -> None:
    pipeline = build(micro_source, PLAIN)
    pipeline.vae.decoder.forward = torch.compile(broken)
    generate(pipeline, micro_request)
    seen = observe(pipeline, micro_request)
    assert [call.graphs for call in seen.calls_of("decoder")] == [2]
    work = work_of(pipeline, seen)
    assert (work.graph_breaks, work.recompiles) == (1, 0)
    verdict = Gate().work(PLAIN, work)
    assert verdict.outcome is Outcome.REGRESSION
    assert "[baseline] graph_breaks" in verdict.message


@pytest.mark.slow
def test_a_recompile_is_counted(micro_source: Source, micro_request: Request) -> None:
    pipeline = build(micro_source, PLAIN)
    compiled = torch.compile(scale, dynamic=False)
    pipeline.step_callback = lambda pipe, step, timestep, tensors: {
        "latents": compiled(tensors["latents"])
    }
    generate(pipeline, micro_request)
    assert work_of(pipeline, observe(pipeline, micro_request)).recompiles == 0
    pipeline.unet.register_to_config(sample_size=LATENT_PX // 2)
    work = work_of(pipeline, observe(pipeline, micro_request))
    assert work.recompiles == 1
    verdict = Gate().work(PLAIN, work)
    assert verdict.outcome is Outcome.REGRESSION
    assert "[baseline] recompiles" in verdict.message
