"""A saved level loads with stock diffusers, weight for weight, and as a source of levels."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors import safe_open

from sdopt.errors import SourceError
from sdopt.levels import LEVELS
from sdopt.pipelines.loading import load_tiny_vae
from sdopt.pipelines.pipeline import LevelPipeline, build, load_weights
from sdopt.pipelines.saving import plainly_laid_out
from sdopt.weights.sources import Source, resolve

CPU = torch.device("cpu")
PARTS = ("text_encoder", "unet", "vae")
pytestmark = pytest.mark.filterwarnings("ignore:You have disabled the safety checker")


def generate(pipeline: Any, **more: Any) -> Any:
    seed = torch.Generator().manual_seed(1)
    given = {"num_inference_steps": 3, "generator": seed, "output_type": "np", **more}
    return pipeline("a cat", **given).images[0]


def weights_of(part: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in part.state_dict().items()}


@pytest.fixture(scope="module", params=LEVELS)
def saved(
    request: pytest.FixtureRequest, micro_source: Source, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LevelPipeline, Path]:
    """A level that has generated, compiled ones before they compile, and its folder."""
    level = replace(LEVELS[request.param], steps=3)
    pipeline = build(micro_source, level)
    if not level.compiled:
        generate(pipeline)
    folder = tmp_path_factory.mktemp("saved") / level.name
    pipeline.save_pretrained(folder)
    return pipeline, folder


@pytest.mark.parametrize("kind", [StableDiffusionPipeline, DiffusionPipeline])
def test_stock_diffusers_loads_it_weight_for_weight(
    kind: Any, saved: tuple[LevelPipeline, Path], micro_source: Source
) -> None:
    pipeline, folder = saved
    loaded = kind.from_pretrained(folder, safety_checker=None)
    assert type(loaded) is StableDiffusionPipeline
    plain = load_weights(micro_source, CPU, torch.float32)
    if pipeline.level.decoder == "tiny-vae":
        plain.vae = load_tiny_vae(micro_source, CPU, torch.float32)
    for name in PARTS:
        found, wanted = (weights_of(getattr(one, name)) for one in (loaded, plain))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted), name


def test_every_weight_is_in_the_file_and_none_is_padded(saved: tuple[LevelPipeline, Path]) -> None:
    pipeline, folder = saved
    for name in PARTS:
        (file,) = (folder / name).glob("*.safetensors")
        with safe_open(file, "pt") as stored:
            keys = set(stored.keys())
        wanted = weights_of(getattr(pipeline, name))
        assert keys == set(wanted)
        held = sum(weight.nbytes for weight in wanted.values())
        assert held <= file.stat().st_size <= held + 2**16


def test_stock_diffusers_generates_the_same_with_it(saved: tuple[LevelPipeline, Path]) -> None:
    pipeline, folder = saved
    if pipeline.level.compiled or pipeline.level.cfg_cutoff is not None:
        pytest.skip("compiling takes a minute; the cutoff is the level's, not the folder's")
    loaded = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    wanted = generate(pipeline)
    np.testing.assert_allclose(generate(loaded), wanted, atol=1e-4)


def test_saving_leaves_the_weights_where_they_are(
    saved: tuple[LevelPipeline, Path], tmp_path: Path
) -> None:
    pipeline, _ = saved
    before = [(w.data_ptr(), w._version, w.stride()) for w in pipeline.unet.parameters()]
    pipeline.save_pretrained(tmp_path / "again")
    after = [(w.data_ptr(), w._version, w.stride()) for w in pipeline.unet.parameters()]
    assert after == before
    state = pipeline.unet.state_dict(keep_vars=True)
    assert all(state[name] is weight for name, weight in pipeline.unet.named_parameters())


def test_its_own_level_generates_the_same_from_it(saved: tuple[LevelPipeline, Path]) -> None:
    pipeline, folder = saved
    if pipeline.level.compiled:
        pytest.skip("compiling takes a minute; the weights are compared")
    again = build(resolve(str(folder)), pipeline.level)
    np.testing.assert_allclose(generate(again), generate(pipeline), atol=1e-6)


def test_a_level_with_the_other_decoder_is_refused_by_name(
    saved: tuple[LevelPipeline, Path],
) -> None:
    pipeline, folder = saved
    source = resolve(str(folder))
    if pipeline.level.decoder == "tiny-vae":
        with pytest.raises(SourceError, match=r"has no full VAE for level 'hoisted'.*'final'"):
            build(source, LEVELS["hoisted"])
    else:
        with pytest.raises(SourceError, match="has no Tiny VAE"):
            build(source, LEVELS["express"])


def test_a_tiny_vae_that_stock_diffusers_saved_is_used(
    micro_source: Source, tmp_path: Path
) -> None:
    express = replace(LEVELS["express"], steps=3)
    stock = StableDiffusionPipeline(
        **load_weights(micro_source, CPU, torch.float32).components,
        requires_safety_checker=False,
    )
    stock.register_modules(vae=load_tiny_vae(micro_source, CPU, torch.float32))
    stock.save_pretrained(tmp_path / "saved")
    # Its own scheduler's spacing stands in the folder now, and would be honoured.
    shutil.copytree(
        micro_source.folder / "scheduler", tmp_path / "saved/scheduler", dirs_exist_ok=True
    )
    found, wanted = (
        generate(build(one, express)) for one in (resolve(str(tmp_path / "saved")), micro_source)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_joined_and_padded_weights_are_copied_and_plain_ones_are_not() -> None:
    module = torch.nn.Module()
    joined = torch.arange(8.0).reshape(4, 2)
    for name, value in (
        ("first", joined[:2]),
        ("second", joined[2:]),
        ("turned", torch.ones(2, 3).t()),
        ("plain", torch.ones(2)),
    ):
        setattr(module, name, torch.nn.Parameter(value))
    with plainly_laid_out([module]):
        state = module.state_dict()
    assert state["plain"].data_ptr() == module.plain.data_ptr()
    for name in ("first", "second", "turned"):
        assert torch.equal(state[name], getattr(module, name))
        assert state[name].is_contiguous()
        assert state[name].untyped_storage().nbytes() == state[name].nbytes
    outside = module.state_dict()
    assert outside["second"].data_ptr() == module.second.data_ptr()
