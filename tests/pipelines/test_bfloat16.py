"""bfloat16 is a choice: it reaches every part of a level, and holds what float16 does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sdopt
from sdopt.compile_cache.identity import made_here
from sdopt.errors import SdoptError, UnknownNameError
from sdopt.levels import LEVELS, Level
from sdopt.pipelines import device_limits
from sdopt.pipelines.pipeline import LevelPipeline, build, dtype_on
from sdopt.pipelines.workload import Request, generate
from sdopt.tuning.jobs import empty_operands, job_of_key
from sdopt.util.precision import DTYPE, chosen_dtype
from sdopt.weights.sources import Source

CPU = torch.device("cpu")
SHORT = {"baseline": LEVELS["baseline"], "tuned": LEVELS["tuned"], "turbo": LEVELS["turbo"]}
NEAR = 0.03
"""Root mean square; another seed is 0.3 away."""
OVERFLOWING = 2.0**17
"""A power of 2, which changes no digit of a bfloat16."""


def built(source: Source, level: Level, dtype: torch.dtype) -> LevelPipeline:
    return build(source, replace(level, steps=3), CPU, dtype)


@pytest.mark.parametrize("name", SHORT)
def test_every_part_computes_in_it_and_the_image_is_near(
    name: str, micro_source: Source, micro_request: Request
) -> None:
    pipeline = built(micro_source, SHORT[name], torch.bfloat16)
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert {weight.dtype for part in parts for weight in part.parameters()} == {torch.bfloat16}
    image = generate(pipeline, micro_request)
    assert np.array_equal(image, generate(pipeline, micro_request))
    wanted = generate(built(micro_source, SHORT[name], torch.float32), micro_request)
    assert 0 < np.sqrt(np.mean((image - wanted) ** 2)) < NEAR


def test_it_holds_activations_beyond_float16(micro_source: Source, micro_request: Request) -> None:
    """A norm follows that takes the factor out again: the image stays."""
    pipeline = built(micro_source, LEVELS["hoisted"], torch.bfloat16)
    before = generate(pipeline, micro_request)
    resnet = pipeline.unet.down_blocks[0].resnets[0]
    with torch.no_grad():
        for part in (resnet.conv1, resnet.time_emb_proj):
            part.weight.mul_(OVERFLOWING)
            part.bias.mul_(OVERFLOWING)
    largest = float(resnet.conv1.weight.detach().abs().max())
    assert largest * 10 > torch.finfo(torch.float16).max
    after = generate(pipeline, micro_request)
    assert np.isfinite(after).all()
    assert np.sqrt(np.mean((after - before) ** 2)) < NEAR


def test_the_environment_is_the_default_and_what_is_given_comes_first(
    micro: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dtype_on(CPU) == torch.float32
    monkeypatch.setenv(DTYPE, "bfloat16")
    assert dtype_on(CPU) == torch.bfloat16
    assert (chosen_dtype("cuda"), chosen_dtype("cuda", torch.float16)) == ("bfloat16", "float16")
    loaded = sdopt.load_pipeline("baseline", source=str(micro), device="cpu")
    assert loaded.unet.dtype == torch.bfloat16
    loaded = sdopt.load_pipeline("baseline", source=str(micro), device="cpu", dtype="float32")
    assert loaded.unet.dtype == torch.float32


@pytest.mark.parametrize("wrong", ["float16", "bf16", torch.float64])
def test_what_the_cpu_does_not_offer_is_refused_with_the_choices(
    wrong: str | torch.dtype, micro: Path
) -> None:
    with pytest.raises(UnknownNameError, match=r"choose from: float32, bfloat16; bfloat16 is for"):
        sdopt.load_pipeline("baseline", source=str(micro), device="cpu", dtype=wrong)


def test_a_gpu_without_it_refuses_by_the_level_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    level, gpu = LEVELS["final"], torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    device_limits.check_dtype(level, gpu, torch.float16)
    with pytest.raises(SdoptError, match=r"level 'final': bfloat16 .* 8.0 .*: float16"):
        device_limits.check_dtype(level, gpu, torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    device_limits.check_dtype(level, gpu, torch.bfloat16)


def test_what_is_compiled_and_packed_is_of_a_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of_key("linear 64x64-64")
    assert {one.dtype for one in empty_operands(job) if one is not None} == {torch.float16}
    assert "dtype" not in made_here()
    monkeypatch.setenv(DTYPE, "bfloat16")
    assert {one.dtype for one in empty_operands(job) if one is not None} == {torch.bfloat16}
    assert made_here()["dtype"] == "bfloat16"
