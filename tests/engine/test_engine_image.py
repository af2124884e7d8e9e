"""The image engine generates what the eager levels generate, and refuses what it cannot honour."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.models.attention_processor import AttnProcessor
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil

from sdopt.bench.measure.observation import parts
from sdopt.bench.measure.quality import to_uint8
from sdopt.bench.metrics import images
from sdopt.engine.image import ImageEngine
from sdopt.engine.modules import fuse_modules
from sdopt.errors import SdoptError
from sdopt.levels import LEVELS
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.workload import EMBEDDED_REQUESTS, generate
from sdopt.weights.sources import resolve

PROMPT = EMBEDDED_REQUESTS[0].prompt
OTHER = EMBEDDED_REQUESTS[1].prompt
NEGATIVE = EMBEDDED_REQUESTS[1].negative_prompt

Pipelines = Callable[[str], LevelPipeline]


@pytest.fixture(scope="module")
def pipelines() -> Pipelines:
    """Levels on the embedded model, eager and on the CPU, each built once."""
    torch.set_num_threads(1)
    built: dict[str, LevelPipeline] = {}

    def get(name: str) -> LevelPipeline:
        if name not in built:
            level = replace(LEVELS[name], compiled=False)
            built[name] = build(resolve("embedded"), level, torch.device("cpu"))
        return built[name]

    return get


def image_of(pipeline: LevelPipeline, prompt: Any = PROMPT, seed: int = 1, **more: Any) -> Any:
    given = {"output_type": "np", "generator": torch.Generator().manual_seed(seed)} | more
    return pipeline(prompt, **given).images


def ssim(one: Any, other: Any) -> float:
    return images.ssim(to_uint8(one), to_uint8(other)).value


LIKE = [
    ("fused", "dpm-20", 0.999),
    ("hoisted", "dpm-20", 0.999),
    ("hoisted-cutoff", "dpm-20-cutoff", 0.999),
    ("express", "final", 0.999),
    ("turbo", "final", 0.99),
]


@pytest.mark.parametrize(("name", "eager", "least"), LIKE)
def test_a_level_generates_the_eager_levels_images(
    name: str, eager: str, least: float, pipelines: Pipelines
) -> None:
    for request in EMBEDDED_REQUESTS[:2]:
        found, wanted = (generate(pipelines(level), request) for level in (name, eager))
        assert ssim(found, wanted) >= least


@pytest.mark.parametrize(
    "more",
    [
        {"num_inference_steps": 7},
        {"num_inference_steps": 1},
        {"height": 64, "width": 192},
        {"guidance_scale": 1.0},
        {"guidance_scale": 3.0, "negative_prompt": NEGATIVE},
    ],
    ids=str,
)
def test_arguments_do_what_they_do_to_the_eager_level(
    more: dict[str, Any], pipelines: Pipelines
) -> None:
    found, wanted = (image_of(pipelines(level), **more)[0] for level in ("express", "final"))
    assert ssim(found, wanted) >= 0.999


def test_two_images_at_once_are_those_generated_alone(pipelines: Pipelines) -> None:
    pipeline = pipelines("express")
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    negatives = ["", NEGATIVE]
    arguments: Any = {"negative_prompt": negatives, "generator": seeds, "output_type": "np"}
    both = pipeline([PROMPT, OTHER], **arguments).images
    for image, prompt, negative, seed in zip(both, (PROMPT, OTHER), negatives, (1, 2), strict=True):
        alone = image_of(pipeline, prompt, seed, negative_prompt=negative)[0]
        assert np.abs(image - alone).max() < 1e-3


def test_pipelines_that_take_turns_do_not_disturb_each_other(pipelines: Pipelines) -> None:
    names = ("express", "hoisted")
    before = [image_of(pipelines(name), num_inference_steps=4) for name in names]
    for _ in range(2):
        for name, wanted in zip(names, before, strict=True):
            assert np.array_equal(image_of(pipelines(name), num_inference_steps=4), wanted)


def test_a_second_thread_generates_the_right_image(pipelines: Pipelines) -> None:
    pipeline = pipelines("express")
    wanted = [image_of(pipeline, seed=seed, num_inference_steps=4) for seed in (1, 2)]
    found: dict[int, Any] = {}

    def work(seed: int) -> None:
        found[seed] = image_of(pipeline, seed=seed, num_inference_steps=4)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[seed], wanted[seed - 1]) for seed in (1, 2))


def test_output_types(pipelines: Pipelines) -> None:
    pipeline = pipelines("express")
    array = image_of(pipeline, num_inference_steps=2)
    assert array.shape == (1, 128, 128, 3)
    tensor = image_of(pipeline, num_inference_steps=2, output_type="pt")
    assert np.allclose(tensor.permute(0, 2, 3, 1).numpy(), array, atol=1e-6)
    image = image_of(pipeline, num_inference_steps=2, output_type="pil")[0]
    assert np.array_equal(np.asarray(image), to_uint8(array[0]))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"callback_on_step_end": print}, "callback_on_step_end"),
        ({"prompt_embeds": torch.zeros(1, 77, 8)}, "prompt_embeds"),
        ({"eta": 0.5}, "eta"),
        ({"output_type": "latent"}, "output_type is 'latent'"),
        ({"height": 100, "width": 64}, "height is 100"),
        ({"height": 64, "width": 32}, "width is 32"),
        ({"height": -64, "width": 64}, "height is -64"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": True}, "num_inference_steps is True"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"num_images_per_prompt": 1.5}, "num_images_per_prompt is 1.5"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": None}, "guidance_scale is None"),
        ({"generator": 1}, "generator is 1"),
        ({"latents": [1]}, "latents is [1]"),
        ({"prompt": 5}, "prompt is 5"),
        ({"prompt": [1]}, "prompt is [1]"),
        ({"prompt": []}, "prompt is []"),
        ({"negative_prompt": 5}, "negative_prompt is 5"),
        ({"negative_prompt": ["", ""]}, "2 negative prompts for 1 prompts"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, "latents are"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_what_cannot_be_honoured_is_refused_by_name(
    more: dict[str, Any], says: str, pipelines: Pipelines
) -> None:
    with pytest.raises(SdoptError) as caught:
        image_of(pipelines("express"), **more)
    assert says in str(caught.value)


def test_a_prompt_of_too_many_tokens_is_told(
    pipelines: Pipelines, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = pipelines("express")
    longest = pipeline.tokenizer.model_max_length
    image_of(pipeline, PROMPT, num_inference_steps=1)
    assert "tokens are used" not in caplog.text
    image_of(pipeline, "red " * longest, num_inference_steps=1)
    assert f"only the first {longest} tokens are used" in caplog.text


def test_steps_may_be_an_integer_of_numpy(pipelines: Pipelines) -> None:
    pipeline = pipelines("express")
    assert np.array_equal(
        image_of(pipeline, num_inference_steps=np.int64(2)),
        image_of(pipeline, num_inference_steps=2),
    )


def own_pipeline() -> LevelPipeline:
    torch.set_num_threads(1)
    return build(resolve("embedded"), LEVELS["turbo"], torch.device("cpu"))


@pytest.fixture
def own() -> LevelPipeline:
    """A pipeline that may be changed for good."""
    return own_pipeline()


def two_steps(pipeline: LevelPipeline, **more: Any) -> Any:
    return image_of(pipeline, num_inference_steps=2, **more)


def scaled(owner: Any, factor: float) -> Tensor:
    weight: Tensor = owner.weight.detach() * factor
    return weight


def write(owner: Any, factor: float) -> None:
    with torch.no_grad():
        owner.weight.mul_(factor)


def write_in_inference_mode(owner: Any, factor: float) -> None:
    with torch.inference_mode():
        owner.weight.mul_(factor)


def put_parameter(owner: Any, factor: float) -> None:
    owner.weight = torch.nn.Parameter(scaled(owner, factor))


def swap_data(owner: Any, factor: float) -> None:
    owner.weight.data = scaled(owner, factor)


def load_state(owner: Any, factor: float, *, assign: bool = False) -> None:
    state = {name: value.clone() for name, value in owner.state_dict().items()}
    owner.load_state_dict({**state, "weight": factor * state["weight"]}, assign=assign)


def load_state_by_assigning(owner: Any, factor: float) -> None:
    load_state(owner, factor, assign=True)


CHANGES = [
    *(write, write_in_inference_mode, put_parameter, swap_data),
    *(load_state, load_state_by_assigning),
]
OWNERS: dict[str, Callable[[LevelPipeline], Any]] = {
    "read": lambda pipeline: pipeline.unet.conv_out,
    "joined": lambda pipeline: block_of(pipeline).attn1.to_v,
    "merged": lambda pipeline: pipeline.unet.mid_block.attentions[0].proj_out,
    "upsample": lambda pipeline: pipeline.unet.up_blocks[0].upsamplers[0].conv,
    "in the text encoder": lambda pipeline: pipeline.text_encoder.get_input_embeddings(),
    "upsample in the decoder": lambda pipeline: doubled_of(pipeline),
}
"""Whose weight is read where it is, and those whose weights others are computed from."""
FACTOR = 4.0


def block_of(pipeline: LevelPipeline) -> Any:
    return pipeline.unet.mid_block.attentions[0].transformer_blocks[0]


def doubled_of(pipeline: LevelPipeline) -> Any:
    layers = list(pipeline.vae.decoder.layers)
    return layers[next(i for i, m in enumerate(layers) if isinstance(m, torch.nn.Upsample)) + 1]


@pytest.fixture(scope="module")
def wanted() -> dict[str, Any]:
    """The image with a weight of each kind changed, and '' with none, by weights fused anew."""
    pipeline = own_pipeline()
    found = {"": two_steps(pipeline)}
    for name, owner in OWNERS.items():
        write(owner(pipeline), FACTOR)
        fuse_modules(pipeline)
        pipeline.engine = ImageEngine(pipeline=pipeline, level=pipeline.level)
        found[name] = two_steps(pipeline)
        write(owner(pipeline), 1 / FACTOR)
        assert np.abs(found[name] - found[""]).max() > 1e-3, name
    return found


def differ(found: Any, wanted: Any) -> bool:
    return bool(np.abs(found - wanted).max() > 1e-5)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_weight_changed_before_the_first_image_is_used(
    change: Callable[[Any, float], None], own: LevelPipeline, wanted: dict[str, Any]
) -> None:
    change(OWNERS["merged"](own), FACTOR)
    assert not differ(two_steps(own), wanted["merged"])


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_weight_changed_between_images_is_used(
    change: Callable[[Any, float], None], own: LevelPipeline, wanted: dict[str, Any]
) -> None:
    for name, owner in OWNERS.items():
        assert not differ(two_steps(own), wanted[""]), name
        change(owner(own), FACTOR)
        assert not differ(two_steps(own), wanted[name]), name
        change(owner(own), 1 / FACTOR)


def test_no_weight_takes_a_freed_ones_place_unseen(
    own: LevelPipeline, wanted: dict[str, Any]
) -> None:
    owner = OWNERS["merged"](own)
    other = scaled(owner, FACTOR)
    owner.weight.data = owner.weight.data.clone()
    assert not differ(two_steps(own), wanted[""])
    size, before = owner.weight.shape, owner.weight.data_ptr()
    owner.weight.data = torch.zeros(())
    # Memory that was freed is what an allocator gives away first.
    places = [torch.empty(size) for _ in range(20)]
    assert before not in [place.data_ptr() for place in places]
    owner.weight.data = places[0].copy_(other)
    assert not differ(two_steps(own), wanted["merged"])


def test_joined_weights_keep_no_copies_for_gradients(own: LevelPipeline) -> None:
    fused: Any = own.fused_unet
    merged = [tensor for pair in fused.merged.values() for tensor in pair]
    computed = [*fused.joined.values(), *fused.upsample.values(), *merged]
    assert own.unet.conv_out.weight.requires_grad
    assert [tensor.requires_grad for tensor in computed] == [False] * len(computed)


def test_calls_in_inference_mode_generate_the_same_image(
    own: LevelPipeline, wanted: dict[str, Any]
) -> None:
    for mode in (torch.inference_mode, nullcontext, torch.inference_mode):
        with mode():
            assert np.array_equal(two_steps(own), wanted[""])
    with torch.inference_mode():
        put_parameter(OWNERS["joined"](own), FACTOR)
        assert not differ(two_steps(own), wanted["joined"])
    assert not differ(two_steps(own), wanted["joined"])


def test_a_pipeline_built_in_inference_mode_generates_the_same_image(
    wanted: dict[str, Any],
) -> None:
    with torch.inference_mode():
        pipeline = own_pipeline()
    assert np.array_equal(two_steps(pipeline), wanted[""])


@pytest.mark.parametrize("name", OWNERS)
def test_a_replaced_module_inside_a_part_is_used(
    name: str, own: LevelPipeline, wanted: dict[str, Any]
) -> None:
    assert not differ(two_steps(own), wanted[""])
    old = OWNERS[name](own)
    new = copy.deepcopy(old)
    write(new, FACTOR)
    parents = [m for part in parts(own).values() for m in part.modules()]
    for parent in parents:
        for key, child in parent.named_children():
            if child is old:
                parent.register_module(key, new)
    assert OWNERS[name](own) is new
    assert not differ(two_steps(own), wanted[name])


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_replaced_part_is_refused(part: str, own: LevelPipeline, wanted: dict[str, Any]) -> None:
    before = getattr(own, part)
    setattr(own, part, copy.deepcopy(before))
    for _ in range(2):
        with pytest.raises(SdoptError, match="'turbo': a part of the pipeline was replaced"):
            two_steps(own)
    setattr(own, part, before)
    assert not differ(two_steps(own), wanted[""])


def test_a_replaced_scheduler_of_another_class_is_refused(own: LevelPipeline) -> None:
    own.register_modules(scheduler=EulerDiscreteScheduler.from_config(own.scheduler.config))
    with pytest.raises(SdoptError, match=r"the pipeline has EulerDiscreteScheduler; use .*'final'"):
        two_steps(own)


def test_freeu_is_refused_by_name(own: LevelPipeline, wanted: dict[str, Any]) -> None:
    own.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    with pytest.raises(SdoptError, match="level 'turbo' does not compute FreeU"):
        two_steps(own)
    own.disable_freeu()
    assert not differ(two_steps(own), wanted[""])


def test_another_attention_processor_is_refused_by_name(
    own: LevelPipeline, wanted: dict[str, Any]
) -> None:
    before = own.unet.attn_processors
    own.unet.set_attn_processor(AttnProcessor())
    says = r"processor is AttnProcessor, it was AttnProcessor2_0; .*'final'"
    with pytest.raises(SdoptError, match=says):
        two_steps(own)
    own.unet.set_attn_processor(before)
    assert not differ(two_steps(own), wanted[""])


def test_a_patched_class_is_refused_by_name(own: LevelPipeline, wanted: dict[str, Any]) -> None:
    """As token merging does it."""
    block = block_of(own)
    kind = type(block)
    block.__class__ = type("ToMeBlock", (kind,), {})
    with pytest.raises(SdoptError, match="leave out the ToMeBlock that was put into a module"):
        two_steps(own)
    block.__class__ = kind
    assert not differ(two_steps(own), wanted[""])


def safety_checker(threshold: float) -> StableDiffusionSafetyChecker:
    """It flags what is more like any concept than the threshold, from -1 to 1."""
    size: dict[str, Any] = {
        **{"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1},
        "num_attention_heads": 1,
    }
    vision = {**size, "image_size": 32, "patch_size": 16}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(text_config=size, vision_config=vision, projection_dim=8)
    )
    checker.concept_embeds_weights.fill_(threshold)
    checker.special_care_embeds_weights.fill_(1.1)
    return checker.eval()


@pytest.mark.parametrize("output_type", ["np", "pil", "pt"])
def test_a_safety_checker_put_back_blackens_and_flags(
    output_type: str, own: LevelPipeline, wanted: dict[str, Any]
) -> None:
    own.feature_extractor = CLIPImageProcessorPil(size=32, crop_size=32)
    arguments: Any = {"num_inference_steps": 2, "output_type": output_type}
    for threshold, flagged in ((-1.1, True), (1.1, False)):
        own.safety_checker = safety_checker(threshold)
        seed = torch.Generator().manual_seed(1)
        output = own(PROMPT, generator=seed, **arguments)
        assert output.nsfw_content_detected == [flagged]
        image = np.asarray(output.images[0])
        if flagged:
            assert not image.any()
        elif output_type == "np":
            assert not differ(image, wanted[""][0])
        else:
            assert image.std() > 0
