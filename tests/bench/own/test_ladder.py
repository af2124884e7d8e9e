"""A project's own levels: what is refused, how they are called, and what is proven of them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from micro import climb
from torch import nn

from sdopt.bench.measure import missing_effects, observe, work_of
from sdopt.bench.measure.generated import generate_all
from sdopt.bench.measure.own_work import counted_flop
from sdopt.bench.measure.second_request import kept_state
from sdopt.bench.own import Ladder, OwnLevel
from sdopt.bench.own.pipeline import OwnPipeline, build
from sdopt.bench.session import RunContext, Session, Settings
from sdopt.errors import SdoptError, UnknownNameError
from sdopt.levels import BASELINE
from sdopt.pipelines.workload import Request
from sdopt.util.progress import Progress
from sdopt.weights.sources import Source

CPU = torch.device("cpu")


def nothing() -> Any:
    return SimpleNamespace()


def level(**fields: Any) -> OwnLevel:
    return OwnLevel(**{"name": "mine", "why": "", "build": nothing, **fields})


def ladder(*levels: OwnLevel, **fields: Any) -> Ladder:
    return Ladder(**{"name": "project", "levels": levels or (level(),), "size_px": 64, **fields})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: level(name="../up"), "has to match"),
        (lambda: level(build="sd15"), "is a function"),
        (lambda: level(fixed=("width",)), "unknown thing that is fixed"),
        (lambda: level(dtype="half"), "unknown dtype"),
        (lambda: level(tf32=True), "tf32 would do nothing"),
        (lambda: level(steps=0), "steps is 0"),
        (lambda: ladder(name="a/b"), "has to match"),
        (lambda: Ladder(name="a", levels=()), "no OwnLevel"),
        (lambda: Ladder(name="a", levels=[BASELINE]), "no OwnLevel"),  # type: ignore[list-item]
        (lambda: ladder(level(), level()), "more than once"),
        (lambda: ladder(level(reference="other")), "unknown reference"),
    ],
)
def test_what_is_no_level_is_refused(make: Any, message: str) -> None:
    with pytest.raises(SdoptError, match=message):
        make()


def test_another_call_or_dtype_makes_another_level_of_it_and_other_words_do_not() -> None:
    stored = level(call={"eta": 0.5}).as_dict()
    assert level(call={"eta": 0.5}, why="new words").changed_since(stored) == []
    assert level(call={"eta": 0.6}).changed_since(stored) != []
    assert level(call={"eta": 0.5}, steps=9).changed_since(stored) == ["steps 30 -> 9"]


@pytest.mark.parametrize(
    "inner",
    [
        SimpleNamespace(),
        SimpleNamespace(unet=nn.Linear(1, 1)),
        SimpleNamespace(unet=nn.Linear(1, 1), vae=SimpleNamespace(decoder=nn.Linear(1, 1))),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(inner: Any) -> None:
    with pytest.raises(SdoptError, match="which does not have what is measured: a denoiser"):
        build(level(build=lambda: inner), ladder().source, CPU)


class Plain:
    """As much of a pipeline as is measured, with a call of few arguments."""

    def __init__(self) -> None:
        self.transformer = nn.Linear(2, 2)
        self.vae = SimpleNamespace(decoder=nn.Linear(1, 1))
        self.scheduler = SimpleNamespace(step=None)
        self.called: dict[str, Any] = {}

    def __call__(self, prompt: str, generator: Any = None, output_type: str = "", eta: float = 0):
        self.called = {"prompt": prompt, "eta": eta, "output_type": output_type}


def test_a_pipeline_gets_the_arguments_that_it_takes_and_its_denoiser_is_found() -> None:
    inner = Plain()
    pipeline = build(level(build=lambda: inner, call={"eta": 0.5}), ladder().source, CPU)
    pipeline("a cat", negative_prompt="a dog", output_type="np")
    assert inner.called == {"prompt": "a cat", "eta": 0.5, "output_type": "np"}
    assert pipeline.unet is inner.transformer
    assert pipeline.fixed == {"guidance", "negative prompt", "number of steps", "size"}
    assert list(pipeline.parts) == ["unet", "decoder"]


def test_a_pipeline_on_another_device_is_refused() -> None:
    inner = Plain()
    inner.transformer.to("meta")
    with pytest.raises(SdoptError, match="is on meta, this run measures on cpu; let build move"):
        build(level(build=lambda: inner), ladder().source, CPU)


class NeedsValues(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.sum().item()


def test_a_module_that_needs_values_is_named_with_what_to_do() -> None:
    inputs: Any = ((torch.zeros(2, device="meta"),), {})
    with pytest.raises(SdoptError, match=r"raised .*give the level counts_flop=False"):
        counted_flop("level 'mine', unet", NeedsValues(), inputs)


def own_pipeline(micro: Path, source: Source, **fields: Any) -> OwnPipeline:
    from diffusers import StableDiffusionPipeline

    def load() -> Any:
        return StableDiffusionPipeline.from_pretrained(
            micro, use_safetensors=True, safety_checker=None, requires_safety_checker=False
        )

    return build(level(steps=3, build=load, **fields), source, CPU)


def test_the_arithmetic_of_own_modules_is_that_of_the_ladder(
    micro: Path, micro_source: Source, micro_request: Request
) -> None:
    from diffusers import EulerAncestralDiscreteScheduler

    pipeline = own_pipeline(micro, micro_source)
    config = pipeline.scheduler.config
    pipeline.inner.scheduler = EulerAncestralDiscreteScheduler.from_config(config)
    own = work_of(pipeline, observe(pipeline, micro_request))  # type: ignore[arg-type]
    theirs = climb(micro_source, replace(BASELINE, steps=3), micro_request).work
    assert own.calls == theirs.calls
    assert own.unet_evaluations == theirs.unet_evaluations
    assert own.tflop == pytest.approx(theirs.tflop, rel=1e-9)


def test_a_wrong_word_on_dtype_or_compiling_fails_the_proof(
    micro: Path, micro_source: Source, micro_request: Request
) -> None:
    pipeline = own_pipeline(micro, micro_source)
    seen = observe(pipeline, micro_request)  # type: ignore[arg-type]
    assert missing_effects(pipeline.level, seen, "float32") == ()
    [sentence] = missing_effects(replace(pipeline.level, compiled=True), seen, "float32")
    assert "ran in 0 of 4 calls of the denoiser, the level says compiled=True" in sentence
    [sentence] = missing_effects(pipeline.level, seen, "float16")
    assert "the denoiser computed in ['float32'], not float16" in sentence


def test_a_pipeline_that_ignores_a_request_is_caught_unless_that_is_fixed(
    micro: Path, micro_source: Source, micro_request: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [micro_request, replace(micro_request, name="dog", prompt="a dog")]
    pipeline = own_pipeline(micro, micro_source)
    original = type(pipeline.inner).__call__

    def deaf(self: Any, *args: Any, guidance_scale: float = 0, **kwargs: Any) -> Any:
        return original(self, *args, guidance_scale=3.0, **kwargs)

    monkeypatch.setattr(type(pipeline.inner), "__call__", deaf)
    found = kept_state(pipeline, requests)  # type: ignore[arg-type]
    assert found == ("second request: its guidance was not used",)
    pipeline.level = replace(pipeline.level, fixed=("guidance",))
    assert kept_state(pipeline, requests) == ()  # type: ignore[arg-type]


def sdxl(micro: Path) -> Any:
    """Two text encoders and further conditions: a pipeline that is no Stable Diffusion 1.5."""
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from sdopt.miniature.tokenizer import END, START, load_tokenizer, token_ids, vocabulary_size

    ids = token_ids()
    config = CLIPTextConfig(
        vocab_size=vocabulary_size(),
        hidden_size=8,
        intermediate_size=8,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=ids[START],
        eos_token_id=ids[END],
        pad_token_id=ids[END],
    )
    tokenizer = load_tokenizer(micro / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 8),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=2,
            cross_attention_dim=16,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=8 + 6 * 4,
        )
        return StableDiffusionXLPipeline(
            vae=AutoencoderKL.from_pretrained(micro / "vae"),
            text_encoder=CLIPTextModel(config),
            text_encoder_2=CLIPTextModelWithProjection(config),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=unet,
            scheduler=EulerDiscreteScheduler(),
            add_watermarker=False,
        )


def test_a_pipeline_of_another_family_is_watched_counted_and_repeated(
    micro: Path, tmp_path: Path
) -> None:
    mine = level(steps=3, build=lambda: sdxl(micro), call={"guidance_rescale": 0.1})
    settings = Settings(baselines_root=tmp_path, ladder=ladder(mine, guidance_scale=5.0))
    session = Session.of(RunContext(settings=settings, progress=Progress(io.StringIO())))
    requests = [
        Request(name="cat", prompt="a cat", negative_prompt="a dog", seed=1),
        Request(name="dog", prompt="a dog", seed=2),
    ]
    pipeline = session.pool.build(mine)
    seen = observe(pipeline, requests[0])
    work = work_of(pipeline, seen)
    assert work.calls == {"text_encoder": 2, "text_encoder_2": 2, "unet": 3, "decoder": 1}
    assert work.unet_evaluations == 6
    assert work.tflop == pytest.approx(sum(work.tflop_by_module.values()), rel=0.1)
    made = generate_all(pipeline, requests)
    assert made.repeat.is_exact
    assert made.doubles == {}
    assert made.latents["cat"].shape == (4, 8, 8)
    assert kept_state(pipeline, requests) == ()
    assert session.run.identity(mine)["level_fields"]["call"] == '{"guidance_rescale": 0.1}'


def test_a_level_of_the_ladder_is_found_by_its_name_and_no_other(tmp_path: Path) -> None:
    settings = Settings(baselines_root=tmp_path, ladder=ladder())
    run = RunContext(settings=settings, progress=Progress(io.StringIO()))
    assert list(run.levels) == ["mine"]
    assert run.baseline_set == "project"
    assert run.dtype_of(level(dtype="bfloat16")) == "bfloat16"
    with pytest.raises(UnknownNameError):
        ladder(level(reference="baseline"))


@pytest.mark.slow
def test_a_compiled_denoiser_is_seen_counted_and_generates_in_float64_uncompiled(
    micro: Path, micro_source: Source, micro_request: Request
) -> None:
    eager = own_pipeline(micro, micro_source)
    expected = work_of(eager, observe(eager, micro_request))  # type: ignore[arg-type]
    pipeline = own_pipeline(micro, micro_source, compiled=True)
    pipeline.inner.unet = torch.compile(pipeline.inner.unet)
    made = generate_all(pipeline, [micro_request])  # type: ignore[arg-type]
    seen = observe(pipeline, micro_request)  # type: ignore[arg-type]
    assert missing_effects(pipeline.level, seen, "float32") == ()
    work = work_of(pipeline, seen)  # type: ignore[arg-type]
    assert (work.recompiles, work.graph_breaks) == (0, 0)
    assert work.tflop == pytest.approx(expected.tflop, rel=1e-12)
    assert made.doubles[micro_request.name].dtype == "float64"
    [sentence] = missing_effects(replace(pipeline.level, compiled=False), seen, "float32")
    assert "ran in 4 of 4 calls of the denoiser" in sentence
