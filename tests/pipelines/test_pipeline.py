"""A level's pipeline is a StableDiffusionPipeline with other defaults, and says what is wrong."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.callbacks import PipelineCallback
from ldm_checkpoint import save_checkpoint
from micro import SIZE_PX, Rung

import sdopt
from sdopt.errors import OutOfMemoryError, SourceError, UnknownNameError
from sdopt.levels import BASELINE, DPM_20_CUTOFF, FINAL, LEVELS, Level
from sdopt.pipelines.pipeline import LevelPipeline, build, dtype_on
from sdopt.pipelines.workload import Request, generate
from sdopt.weights.sources import Source

PLAIN = replace(BASELINE, steps=2)
EAGER_CUTOFF = replace(DPM_20_CUTOFF, compiled=False, steps=5, cfg_cutoff=0.4)
EAGER_FINAL = replace(FINAL, compiled=False, steps=5, cfg_cutoff=0.4)


@pytest.fixture(scope="module")
def plain(micro_source: Source) -> LevelPipeline:
    return build(micro_source, PLAIN)


@pytest.fixture(scope="module")
def cutoff(micro_source: Source) -> LevelPipeline:
    return build(micro_source, EAGER_CUTOFF)


class Batches:
    """Records the UNet's batch sizes while it is entered."""

    def __init__(self, pipeline: LevelPipeline) -> None:
        self.unet = pipeline.unet
        self.sizes: list[int] = []

    def __enter__(self) -> list[int]:
        self.handle = self.unet.register_forward_pre_hook(
            lambda _, args: self.sizes.append(len(args[0]))
        )
        return self.sizes

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def image(pipeline: LevelPipeline, **arguments: Any) -> np.ndarray:
    arguments = {"prompt": "a cat", "generator": seeded(), "output_type": "np", **arguments}
    return np.asarray(pipeline(**arguments).images[0])


def test_load_pipeline_is_the_front_door(micro: Path) -> None:
    pipeline = sdopt.load_pipeline("baseline", source=str(micro), device="cpu")
    assert isinstance(pipeline, StableDiffusionPipeline)
    assert (pipeline.level, pipeline.device.type) == (BASELINE, "cpu")
    with Batches(pipeline) as sizes:
        made = pipeline("a cat", generator=seeded()).images[0]
    assert made.size == (SIZE_PX, SIZE_PX)
    assert sizes == [2] * 30


def test_loading_takes_the_best_level_by_default(
    micro: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sdopt.pipelines.pipeline.build", lambda source, level, *where: (level, *where)
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = (LEVELS["final"], device, dtype_on(device))
    assert sdopt.load_pipeline(source=str(micro)) == wanted


def test_a_seed_means_the_same_image(plain: LevelPipeline) -> None:
    first = image(plain)
    assert np.array_equal(image(plain), first)
    assert not np.array_equal(image(plain, generator=seeded(2)), first)


def test_num_inference_steps_overrides_the_level(cutoff: LevelPipeline) -> None:
    with Batches(cutoff) as sizes:
        image(cutoff, num_inference_steps=10)
    assert sizes == [2] * 5 + [1] * 5


def test_guidance_scale_overrides_the_source(cutoff: LevelPipeline) -> None:
    with Batches(cutoff) as sizes:
        unguided = image(cutoff, guidance_scale=1)
    assert sizes == [1] * 5
    assert not np.array_equal(image(cutoff), unguided)


def test_height_and_width_work_by_position(plain: LevelPipeline) -> None:
    made = plain("a cat", 32, SIZE_PX, generator=seeded(), output_type="np").images
    assert made.shape == (1, 32, SIZE_PX, 3)


def test_a_batch_of_prompts_keeps_its_cutoff(cutoff: LevelPipeline) -> None:
    with Batches(cutoff) as sizes:
        images = cutoff(
            ["a cat", "a dog"], generator=[seeded(1), seeded(2)], output_type="np"
        ).images
    assert sizes == [4] * 3 + [2] * 2
    np.testing.assert_allclose(images[0], image(cutoff), atol=1e-4)
    np.testing.assert_allclose(
        images[1], image(cutoff, prompt="a dog", generator=seeded(2)), atol=1e-4
    )


def test_several_images_of_a_prompt_keep_the_cutoff(cutoff: LevelPipeline) -> None:
    with Batches(cutoff) as sizes:
        images = cutoff("a cat", num_images_per_prompt=2, output_type="np").images
    assert (len(images), sizes) == (2, [4] * 3 + [2] * 2)


def test_the_cutoff_changes_the_image(cutoff: LevelPipeline, micro_source: Source) -> None:
    guided = build(micro_source, replace(EAGER_CUTOFF, cfg_cutoff=None))
    assert not np.array_equal(image(cutoff), image(guided))


def test_the_users_callback_runs_beside_the_cutoff(cutoff: LevelPipeline) -> None:
    steps: list[tuple[int, list[str]]] = []

    def watch(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append((step, sorted(tensors)))
        return {}

    plain_image = image(cutoff)
    with Batches(cutoff) as sizes:
        watched = image(
            cutoff,
            callback_on_step_end=watch,
            callback_on_step_end_tensor_inputs=["latents", "negative_prompt_embeds"],
        )
    assert sizes == [2] * 3 + [1] * 2
    assert [step for step, _ in steps] == [0, 1, 2, 3, 4]
    assert {"latents", "negative_prompt_embeds"} <= set(steps[0][1])
    assert np.array_equal(watched, plain_image)


def test_what_the_users_callback_changes_is_kept(cutoff: LevelPipeline) -> None:
    def blank(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": torch.zeros_like(tensors["latents"])}

    changed = image(cutoff, callback_on_step_end=blank)
    assert not np.array_equal(changed, image(cutoff))
    assert np.array_equal(changed, image(cutoff, callback_on_step_end=blank, prompt="a dog"))


class NegativeWatcher(PipelineCallback):
    """One of diffusers' callback objects, which name the tensors that they need."""

    tensor_inputs = ["negative_prompt_embeds"]  # noqa: RUF012 - diffusers wants a list

    def __init__(self) -> None:
        super().__init__(cutoff_step_ratio=1.0)
        self.seen: list[int] = []

    def callback_fn(
        self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        self.seen.append(len(callback_kwargs["negative_prompt_embeds"]))
        return callback_kwargs


@pytest.mark.parametrize("name", ["plain", "cutoff"])
def test_diffusers_own_callback_objects_work(name: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(name)
    watcher = NegativeWatcher()
    image(pipeline, callback_on_step_end=watcher)
    assert watcher.seen == [1] * pipeline.level.steps


def test_two_levels_in_turn_do_not_disturb_each_other(
    plain: LevelPipeline, micro_source: Source
) -> None:
    final = build(micro_source, EAGER_FINAL)
    alone = [image(plain), image(final)]
    in_turn = [image(p) for p in (final, plain, final, plain)]
    assert all(
        np.array_equal(made, alone[which])
        for made, which in zip(in_turn, (1, 0, 1, 0), strict=True)
    )


@pytest.mark.slow
def test_compiled_levels_in_turn_do_not_disturb_each_other(
    ladder: dict[str, Rung], micro_request: Request
) -> None:
    names = ("baseline", "compiled", "final", "euler-20-cutoff")
    alone = {name: generate(ladder[name].pipeline, micro_request) for name in names}
    for name in (*reversed(names), *names):
        assert np.array_equal(generate(ladder[name].pipeline, micro_request), alone[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compiled", "compiled-tiny-vae"])
def test_compiling_keeps_the_image(
    name: str, ladder: dict[str, Rung], micro_source: Source, micro_request: Request
) -> None:
    eager = build(micro_source, replace(LEVELS[name], compiled=False))
    compiled = generate(ladder[name].pipeline, micro_request)
    np.testing.assert_allclose(compiled, generate(eager, micro_request), atol=1e-3)


def test_process_wide_settings_are_restored_after_an_error(micro_source: Source) -> None:
    def switches() -> tuple[bool, bool, bool]:
        cudnn = torch.backends.cudnn
        return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark

    def fail(*_: Any) -> dict[str, Any]:
        inside.append(switches())
        raise MemoryError("out of memory")

    before, inside = switches(), list[tuple[bool, bool, bool]]()
    pipeline = build(micro_source, EAGER_FINAL)
    with pytest.raises(MemoryError, match="out of memory"):
        image(pipeline, callback_on_step_end=fail)
    assert inside == [(True, True, True)]
    assert switches() == before


def test_a_freed_pipeline_is_gone(micro_source: Source) -> None:
    pipeline = build(micro_source, replace(FINAL, steps=2))
    gone = [weakref.ref(part) for part in (pipeline, pipeline.unet, pipeline.vae)]
    del pipeline
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3


def test_an_unknown_level_is_named_with_the_choices(micro: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown level 'dpm20'") as caught:
        sdopt.load_pipeline("dpm20", source=str(micro))
    assert "did you mean 'dpm-20'" in str(caught.value)
    assert caught.value.choices == tuple(LEVELS)


def test_an_unknown_source_is_named_with_the_choices() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown source 'embeded'.*did you mean 'embedded'"
    ):
        sdopt.load_pipeline("baseline", source="embeded")


@pytest.mark.parametrize("name", ["xx", "cuda:99", "meta", "cpu:0"])
def test_a_device_that_is_not_there_is_named_with_the_choices(name: str, micro: Path) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown device '{name}'.*choose from: cpu"):
        sdopt.load_pipeline("baseline", source=str(micro), device=name)


def test_an_unknown_prompt_word_is_named() -> None:
    pipeline = sdopt.load_pipeline("baseline", source="embedded")
    with pytest.raises(UnknownNameError, match=r"unknown prompt word 'sqare'.*'square'"):
        pipeline("a red sqare")
    with pytest.raises(UnknownNameError, match="unknown prompt word 'photograph'"):
        pipeline(["a red square", "a blue star"], negative_prompt=["", "photograph"])


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def corrupt(file: Path) -> None:
    file.write_bytes(b"not a safetensors file" * 100)


def empty(file: Path) -> None:
    os.truncate(file, 0)


@pytest.mark.parametrize("damage", [truncate, corrupt, empty, Path.unlink])
@pytest.mark.parametrize(
    "weights",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tiny_vae/diffusion_pytorch_model.safetensors",
    ],
)
def test_broken_weights_name_the_source(
    weights: str, damage: Callable[[Path], None], micro: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(micro, folder)
    damage(folder / weights)
    with pytest.raises(SourceError, match=r"source 'broken'.*cannot be loaded.*it is complete"):
        build(sdopt.weights.sources.resolve(str(folder)), EAGER_FINAL)


def swap_width(file: Path) -> None:
    file.write_text(file.read_text().replace("16", "32"))


@pytest.mark.parametrize(
    ("config", "damage"),
    [
        ("scheduler/scheduler_config.json", truncate),
        ("tokenizer/vocab.json", truncate),
        ("text_encoder/config.json", swap_width),
        ("unet/config.json", swap_width),
        ("model_index.json", lambda file: file.write_text(file.read_text().replace("unet", "u"))),
    ],
)
def test_broken_configs_name_the_source(
    config: str, damage: Callable[[Path], None], micro_source: Source, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(micro_source.folder, folder)
    damage(folder / config)
    broken = replace(micro_source, name="broken", folder=folder)
    with pytest.raises(SourceError, match=r"source 'broken'.*cannot be loaded"):
        build(broken, PLAIN)


def test_a_source_without_a_tiny_vae_still_runs_the_other_levels(
    micro: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "half"
    shutil.copytree(micro, folder)
    shutil.rmtree(folder / "tiny_vae")
    source = sdopt.weights.sources.resolve(str(folder))
    with pytest.raises(
        SourceError, match=r"source 'half' has no Tiny VAE.*save an AutoencoderTiny"
    ):
        build(source, EAGER_FINAL)
    assert image(build(source, PLAIN)).shape == (SIZE_PX, SIZE_PX, 3)


def test_one_file_of_weights_generates_as_the_folder_does(
    micro_source: Source, micro_request: Request, tmp_path: Path
) -> None:
    level = replace(BASELINE, steps=2)
    expected = build(micro_source, level)
    folder = tmp_path / "models"
    shutil.copytree(micro_source.folder, folder)
    for weights in folder.rglob("*.safetensors"):
        if weights.parent.name != "tiny_vae":
            weights.unlink()
    save_checkpoint(expected, folder / "v1.safetensors")
    source = sdopt.weights.sources.resolve(str(folder / "v1.safetensors"))
    generated = generate(build(source, level), micro_request)
    np.testing.assert_allclose(generated, generate(expected, micro_request), atol=1e-5)


def test_a_file_of_other_weights_names_it(micro_source: Source, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    shutil.copytree(micro_source.folder, folder)
    shutil.copy(folder / "vae" / "diffusion_pytorch_model.safetensors", folder / "v1.safetensors")
    with pytest.raises(SourceError, match=r"source 'v1': .*v1\.safetensors cannot be loaded"):
        build(sdopt.weights.sources.resolve(str(folder / "v1.safetensors")), BASELINE)


def full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def hungry(error: Exception) -> list[str]:
    """What an error should say of a level that does not fit, and does not."""
    words = ("level 'baseline'", "held 3072 MiB", "Tried to allocate 20.00 MiB", "Tiny VAE")
    return [word for word in words if word not in str(error)]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)


@pytest.mark.usefixtures("held")
def test_an_image_that_does_not_fit_names_the_level_and_what_it_needed(
    micro_source: Source, micro_request: Request
) -> None:
    pipeline = build(micro_source, PLAIN)
    pipeline.unet.forward = full
    with pytest.raises(OutOfMemoryError) as caught:
        generate(pipeline, micro_request)
    assert hungry(caught.value) == []


@pytest.mark.usefixtures("held")
def test_weights_that_do_not_fit_name_the_level_too(
    micro_source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdopt.pipelines.pipeline.load_weights", full)
    with pytest.raises(OutOfMemoryError) as caught:
        build(micro_source, PLAIN)
    assert hungry(caught.value) == []


@pytest.mark.parametrize("level", [BASELINE, FINAL], ids=lambda level: str(level.name))
def test_a_pipeline_moves_to_the_device_once(
    level: Level, micro_source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the decoder that it keeps, and before anything is compiled or laid out."""
    decoders, moves = [], LevelPipeline.to

    def noted(self: LevelPipeline, *args: Any, **kwargs: Any) -> Any:
        decoders.append((type(self.vae), "forward" in vars(self.vae.decoder), *args))
        return moves(self, *args, **kwargs)

    monkeypatch.setattr(LevelPipeline, "to", noted)
    pipeline = build(micro_source, level, torch.device("cpu"))
    assert decoders == [(type(pipeline.vae), False, torch.device("cpu"))]
