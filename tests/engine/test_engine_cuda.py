"""The image engine's graphs on a GPU: never replayed for what they were not captured for.

Skipped without one; `pytest tests/engine/test_engine_cuda.py` on a Hopper GPU takes a minute.
"""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
import torch
from lora import ATTENTION, TEXT, lora

from sdopt.engine.cuda_graphs import eager_calls
from sdopt.errors import SdoptError
from sdopt.levels import LEVELS
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.workload import EMBEDDED_REQUESTS
from sdopt.weights.sources import resolve

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PROMPT, OTHER = (request.prompt for request in EMBEDDED_REQUESTS[:2])


@pytest.fixture(scope="module")
def pipeline() -> LevelPipeline:
    return build(resolve("embedded"), LEVELS["turbo"], torch.device("cuda"))


def generate(pipeline: LevelPipeline, prompt: str = PROMPT, seed: int = 1, **more: Any) -> Any:
    more.setdefault("output_type", "np")
    return pipeline(prompt, generator=torch.Generator().manual_seed(seed), **more).images


def without_graphs(pipeline: LevelPipeline, *arguments: Any, **more: Any) -> Any:
    with eager_calls():
        return generate(pipeline, *arguments, **more)


KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"seed": 2},
    {"prompt": OTHER},
    {"prompt": OTHER, "negative_prompt": PROMPT},
    {"guidance_scale": 3.0},
    {"guidance_scale": 1.0},
    {"num_inference_steps": 7},
    {"num_inference_steps": 1},
    {"height": 64, "width": 192},
    {"num_images_per_prompt": 2},
)


@pytest.mark.parametrize("more", KINDS, ids=str)
def test_a_replay_is_what_the_same_kernels_generate_without_a_graph(
    more: dict[str, Any], pipeline: LevelPipeline
) -> None:
    wanted = without_graphs(pipeline, **more)
    for _ in range(2):
        assert np.array_equal(generate(pipeline, **more), wanted)


def test_kinds_in_turns_and_more_of_them_than_are_kept(pipeline: LevelPipeline) -> None:
    wanted = [without_graphs(pipeline, **more) for more in KINDS]
    for _ in range(2):
        for more, image in zip(KINDS, wanted, strict=True):
            assert np.array_equal(generate(pipeline, **more), image)


def test_generators_and_latents_of_host_and_device_agree(pipeline: LevelPipeline) -> None:
    shape = (1, pipeline.unet.config.in_channels, 16, 16)
    dtype = pipeline.unet.conv_in.weight.dtype
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    wanted = generate(pipeline)
    assert np.array_equal(generate(pipeline, latents=latents), wanted)
    assert np.array_equal(generate(pipeline, latents=latents.cuda()), wanted)
    on_device = torch.Generator("cuda").manual_seed(1)
    other = pipeline(PROMPT, generator=on_device, output_type="np").images
    assert other.shape == wanted.shape
    assert not np.array_equal(other, wanted)


def test_images_are_the_callers_to_keep(pipeline: LevelPipeline) -> None:
    kept = [generate(pipeline, output_type=kind) for kind in ("np", "pt")]
    copies = [kept[0].copy(), kept[1].clone()]
    generate(pipeline, prompt=OTHER)
    generate(pipeline, prompt=OTHER, output_type="pt")
    assert np.array_equal(kept[0], copies[0])
    assert torch.equal(kept[1], copies[1])


def scaled(weight: torch.nn.Parameter, factor: float, how: str) -> None:
    with torch.no_grad():
        if how == "written to":
            weight.mul_(factor)
        else:
            weight.data = weight.data * factor
            gc.collect()
            torch.cuda.empty_cache()


@pytest.mark.parametrize("how", ["written to", "moved"])
@pytest.mark.parametrize("part", ["conv_out", "joined"])
def test_a_changed_weight_is_generated_with(how: str, part: str, pipeline: LevelPipeline) -> None:
    unet = pipeline.unet
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    weight = unet.conv_out.weight if part == "conv_out" else block.attn1.to_q.weight
    before = generate(pipeline)
    scaled(weight, 4.0, how)
    changed, wanted = generate(pipeline), without_graphs(pipeline)
    again = generate(pipeline)
    scaled(weight, 0.25, how)
    assert np.array_equal(changed, wanted)
    assert np.array_equal(again, wanted)
    assert not np.array_equal(changed, before)
    assert np.array_equal(generate(pipeline), before)


@pytest.mark.parametrize("part", ["merged", "upsample"])
def test_a_write_that_no_version_counter_tells_is_generated_with(
    part: str, pipeline: LevelPipeline
) -> None:
    """By the fingerprint that the graph itself takes."""
    unet = pipeline.unet
    owners = {
        "merged": unet.mid_block.attentions[0].proj_out,
        "upsample": unet.up_blocks[0].upsamplers[0].conv,
    }
    weight = owners[part].weight
    before, version = generate(pipeline), weight._version
    weight.data.mul_(4)
    assert weight._version == version
    changed, wanted = generate(pipeline), without_graphs(pipeline)
    weight.data.mul_(0.25)
    assert np.array_equal(changed, wanted)
    assert not np.array_equal(changed, before)
    assert np.array_equal(generate(pipeline), before)


def test_lora_is_generated_with_and_gone_when_unloaded(pipeline: LevelPipeline) -> None:
    before = generate(pipeline)
    captures = pipeline.engine.captures  # type: ignore[union-attr]
    pipeline.load_lora_weights(lora(pipeline, (*ATTENTION, *TEXT)), adapter_name="one")
    loaded, wanted = generate(pipeline), without_graphs(pipeline)
    assert np.array_equal(loaded, wanted)
    assert not np.array_equal(loaded, before)
    assert np.array_equal(generate(pipeline), loaded)
    assert pipeline.engine.captures == captures + 1  # type: ignore[union-attr]
    scaled = generate(pipeline, cross_attention_kwargs={"scale": 0.3})
    assert not np.array_equal(scaled, loaded)
    pipeline.unload_lora_weights()
    assert np.array_equal(generate(pipeline), before)


def test_hooks_and_another_forward_are_refused_after_an_image(pipeline: LevelPipeline) -> None:
    before = generate(pipeline)
    for module in (pipeline.unet, pipeline.unet.mid_block, pipeline.vae.decoder):
        handle = module.register_forward_hook(lambda *_: None)
        with pytest.raises(SdoptError, match="the forward hook of a module"):
            generate(pipeline)
        handle.remove()
    assert np.array_equal(generate(pipeline), before)


@pytest.mark.parametrize("level", ["turbo", "one-graph", "final"])
def test_a_deleted_pipelines_memory_comes_back_at_once(level: str) -> None:
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    own = build(resolve("embedded"), LEVELS[level], torch.device("cuda"))
    generate(own)
    gc.collect()
    gc.disable()
    try:
        del own
        torch.cuda.empty_cache()
        assert torch.cuda.memory_allocated() <= before + 2**20
    finally:
        gc.enable()


def test_a_pipeline_that_went_to_the_host_and_came_back(pipeline: LevelPipeline) -> None:
    before = generate(pipeline)
    pipeline.to("cpu")
    torch.cuda.empty_cache()
    pipeline.to("cuda")
    assert np.array_equal(generate(pipeline), before)


def test_threads_and_streams_take_turns(pipeline: LevelPipeline) -> None:
    wanted = [generate(pipeline, seed=seed) for seed in range(4)]
    found: dict[int, Any] = {}

    def work(seed: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            for _ in range(5):
                found[seed] = generate(pipeline, seed=seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[seed], wanted[seed]) for seed in range(4))


def test_two_pipelines_take_turns(pipeline: LevelPipeline) -> None:
    other = build(resolve("embedded"), LEVELS["hoisted"], torch.device("cuda"))
    wanted = [generate(one) for one in (pipeline, other)]
    for _ in range(2):
        assert np.array_equal(generate(pipeline), wanted[0])
        assert np.array_equal(generate(other), wanted[1])
