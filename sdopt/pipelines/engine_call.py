"""A diffusers call drawn by the picture engine: the arguments it takes, and refusal of the rest."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import ExitStack
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from torch import Tensor

from sdopt.engine.cuda_graphs import replaying
from sdopt.engine.placed import check_placed
from sdopt.engine.stock import changed
from sdopt.errors import SdoptError

if TYPE_CHECKING:
    from sdopt.engine.picture import PictureEngine
    from sdopt.pipelines.pipeline import LevelPipeline

logger = logging.getLogger(__name__)

ARGUMENTS = (
    "prompt",
    "negative_prompt",
    "height",
    "width",
    "num_inference_steps",
    "guidance_scale",
    "num_images_per_prompt",
    "generator",
    "latents",
    "output_type",
    "return_dict",
    "cross_attention_kwargs",
)
OUTPUT_TYPES = ("pil", "np", "pt")
IGNORED: Mapping[str, Any] = {"eta": 0.0, "guidance_rescale": 0.0}
"""Arguments whose defaults of diffusers mean: not used."""
CALLED = ("prepare_latents", "run_safety_checker")
"""Methods of a pipeline that the engine calls as diffusers does."""
MULTIPLE_PX = 64
"""Sides of pictures: the UNet halves the latents three times, and doubles them exactly."""


@torch.no_grad()
def drawn_whole(pipeline: LevelPipeline, engine: PictureEngine, arguments: dict[str, Any]) -> Any:
    """What `StableDiffusionPipeline.__call__` returns. Raises SdoptError for other arguments.

    Under `torch.autocast` too it computes in the weights' own precision: what it keeps, such as the
    solver's table, serves later calls that are not.
    """
    with ExitStack() as stack:
        for kind in {"cpu", pipeline.device.type} - {"meta"}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        return _drawn_whole(pipeline, engine, dict(arguments))


def _drawn_whole(pipeline: LevelPipeline, engine: PictureEngine, given: dict[str, Any]) -> Any:
    if replaying():  # else somebody watches what is called, and all of it is
        check_methods(pipeline, engine.level.name)
    given = {name: number_of(value) for name, value in given.items()}
    check_arguments(engine.level.name, given)
    check_placed(pipeline, engine.level.name)
    check_additions(pipeline, engine.level.name)
    height, width = _size(pipeline, given)
    prompts = _prompts(given)
    guidance_scale = float(given["guidance_scale"])
    guided = guidance_scale > 1
    ids = token_ids(pipeline, prompts, _negatives(given, prompts) if guided else [])
    _check_latents(pipeline, given.get("latents"), len(prompts), (height, width))
    noise = first_noise(pipeline, len(prompts), (height, width), given)
    scale = float(number_of((given.get("cross_attention_kwargs") or {}).get("scale", 1.0)))
    if given.get("cross_attention_kwargs"):
        # As diffusers notes it: a LoRA of the text encoder that is loaded later begins with it.
        pipeline._lora_scale = scale
    picture = engine.draw(ids, noise, guidance_scale, int(given["num_inference_steps"]), scale)
    picture, flagged = pipeline.run_safety_checker(picture, pipeline.device, picture.dtype)
    images = finished(pipeline, picture, given.get("output_type", "pil"), flagged)
    if not given.get("return_dict", True):
        return images, flagged
    return StableDiffusionPipelineOutput(images=images, nsfw_content_detected=flagged)


def first_noise(
    pipeline: LevelPipeline, pictures: int, size: tuple[int, int], given: Mapping[str, Any]
) -> Tensor:
    """What diffusers begins with, (pictures, 4, H, W), as it would be on a scale of 1.

    A generator of the host draws it there, and there it stays: one copy fewer.
    """
    generator, latents = given.get("generator"), given.get("latents")
    generators = generator if isinstance(generator, list) else [generator]
    on_host = latents is None and all(one and one.device.type == "cpu" for one in generators)
    noise: Tensor = pipeline.prepare_latents(
        pictures,
        pipeline.unet.config.in_channels,
        *size,
        pipeline.unet.conv_in.weight.dtype,
        torch.device("cpu") if on_host else pipeline.device,
        generator,
        latents,
    )
    # That scaled it by what the scheduler starts with, as the engine does itself.
    sigma = pipeline.scheduler.init_noise_sigma
    return noise if sigma == 1 else noise / sigma


def finished(
    pipeline: LevelPipeline, picture: Tensor, output_type: str, flagged: list[bool] | None = None
) -> Any:
    """The picture as diffusers returns it; an array is finished on the device, not on the host.

    `flagged` says which ones a safety checker blackened; None is without one.
    """
    processor = pipeline.image_processor
    if output_type != "np" or flagged is not None or not _is_stock_processor(processor):
        safe = [True] * len(picture) if flagged is None else [not bad for bad in flagged]
        return processor.postprocess(picture, output_type=output_type, do_denormalize=safe)
    unit = (picture * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().contiguous()
    if not unit.is_cuda:
        return unit.numpy()
    # Through pinned memory, which a copy from the device fills four times as fast. The array's own
    # memory is touched, and so made, while the GPU still draws.
    pinned = torch.empty(unit.shape, dtype=unit.dtype, pin_memory=True)
    pinned.copy_(unit, non_blocking=True)
    array = np.empty(tuple(unit.shape), dtype=np.float32)
    array.fill(0)
    torch.cuda.current_stream(unit.device).synchronize()
    torch.from_numpy(array).copy_(pinned)  # by several threads
    return array


def _is_stock_processor(processor: Any) -> bool:
    """Whether it makes arrays as diffusers' VaeImageProcessor does, of whatever configuration."""
    own = any(callable(getattr(type(processor), name, None)) for name in vars(processor))
    return type(processor) is VaeImageProcessor and not own and not changed(VaeImageProcessor)


def check_methods(pipeline: LevelPipeline, level: str) -> None:
    """Raise SdoptError for a method of the pipeline that is another one, and would not be called.

    The safety checker's and the one that makes the noise are called.
    """
    kind = type(pipeline)
    put_in = [
        name
        for name, value in vars(pipeline).items()
        if callable(value) and name not in CALLED and callable(getattr(kind, name, None))
    ]
    patch = f"the {put_in[0]} that was put into the pipeline" if put_in else changed(kind)
    if patch:
        raise SdoptError(
            f"level {level!r} draws a picture as one graph, which would leave out {patch}; undo "
            "that, or use a level without it, such as 'final'"
        )


def check_arguments(level: str, given: dict[str, Any]) -> None:
    """Raise SdoptError naming an argument that the engine cannot honour."""
    unused = [n for n, v in given.items() if n not in ARGUMENTS and _is_used(v, IGNORED.get(n))]
    if unused:
        raise SdoptError(
            f"level {level!r} draws a picture as one graph, which cannot use {', '.join(unused)}; "
            f"it takes {', '.join(ARGUMENTS)}; use a level without it, such as 'final'"
        )
    for name, right, wanted in _WANTED:
        if name in given and not right(given[name]):
            left_out = "" if name == "prompt" else ", or leave it out for the default"
            raise SdoptError(
                f"{name} is {_shown(given[name])}; level {level!r} takes {wanted}; give "
                f"that{left_out}"
            )


def number_of(value: Any) -> Any:
    """A number or text that numpy or PyTorch wraps, as itself: diffusers takes most of them."""
    wrapped = isinstance(value, (np.ndarray, np.generic, Tensor)) and value.ndim == 0
    return value.item() if wrapped else value


def _shown(value: Any) -> str:
    if isinstance(value, (np.ndarray, Tensor)):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    return repr(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _are_texts(value: Any) -> bool:
    several = value if isinstance(value, list) else [value]
    return bool(several) and all(isinstance(text, str) for text in several)


def _are_generators(value: Any) -> bool:
    several = value if isinstance(value, list) else [value]
    return bool(several) and all(isinstance(one, torch.Generator) for one in several)


def _is_scale(value: Any) -> bool:
    return value is None or (
        isinstance(value, Mapping)
        and all(name == "scale" and _is_finite(one) for name, one in value.items())
    )


def _is_finite(value: Any) -> bool:
    number = number_of(value)
    return isinstance(number, Real) and math.isfinite(number)


_WANTED = (
    ("prompt", _are_texts, "a string or a list of strings"),
    (
        "negative_prompt",
        lambda v: v is None or (isinstance(v, list) and not v) or _are_texts(v),
        "strings like `prompt`",
    ),
    ("num_inference_steps", _is_count, "an integer, 1 or more"),
    ("num_images_per_prompt", lambda v: v is None or _is_count(v), "an integer, 1 or more"),
    (
        "guidance_scale",
        _is_finite,
        "a finite number (1 or less is no guidance)",
    ),
    ("generator", lambda v: v is None or _are_generators(v), "torch.Generators"),
    ("latents", lambda v: v is None or isinstance(v, Tensor), "a tensor"),
    ("cross_attention_kwargs", _is_scale, "{'scale': NUMBER}, the scale of LoRA, and nothing else"),
    (
        "output_type",
        lambda v: isinstance(v, str) and v in OUTPUT_TYPES,
        f"one of {', '.join(OUTPUT_TYPES)} (latents come from a level without the engine, 'final')",
    ),
)
"""Arguments, what they have to be, and how that is called."""


def check_additions(pipeline: LevelPipeline, level: str) -> None:
    """Raise SdoptError for FreeU, which the engine's own kernels do not compute."""
    if not pipeline.level.fused:
        return
    if any(getattr(block, "s1", None) is not None for block in pipeline.unet.up_blocks):
        raise SdoptError(
            f"level {level!r} does not compute FreeU; call disable_freeu(), or use a level without "
            "the engine, such as 'final'"
        )


def token_ids(pipeline: LevelPipeline, prompts: list[str], negatives: list[str]) -> Tensor:
    """Tokens of the negative prompts, then of the prompts, (prompts, tokens), on the host."""
    tokenizer = pipeline.tokenizer
    texts = [*negatives, *prompts]
    if len(tokenizer.added_tokens_encoder) > len(set(tokenizer.all_special_tokens)):
        # Textual inversions are tokens that were added; their search tokenizes every prompt twice.
        texts = [pipeline.maybe_convert_prompt(text, tokenizer) for text in texts]
    # Lists: with return_tensors="pt" it takes twice as long.
    longest = tokenizer.model_max_length
    encoded = tokenizer(texts, padding="max_length", max_length=longest, truncation=True)
    for text, one in zip(texts, encoded.encodings or (), strict=False):
        if one.overflowing:
            logger.warning("of the prompt %r only the first %d tokens are used", text, longest)
    return torch.tensor(encoded.input_ids)


def _size(pipeline: LevelPipeline, given: dict[str, Any]) -> tuple[int, int]:
    """Height and width in px, as diffusers: one without the other is as if none were given."""
    size: tuple[Any, ...] = (given.get("height"), given.get("width"))
    if any(side is None or (isinstance(side, Real) and not side) for side in size):
        own = pipeline.unet.config.sample_size
        sides = (own, own) if isinstance(own, int) else tuple(own)
        size = tuple(side * pipeline.vae_scale_factor for side in sides)
    for name, value in zip(("height", "width"), size, strict=True):
        if not isinstance(value, Integral) or value < MULTIPLE_PX or value % MULTIPLE_PX:
            raise SdoptError(
                f"{name} is {_shown(value)}; this level draws multiples of {MULTIPLE_PX} px, from "
                f"{MULTIPLE_PX} on; use one, or a level without the engine, such as 'final'"
            )
    return int(size[0]), int(size[1])


def _is_used(value: Any, unused: Any) -> bool:
    if isinstance(value, (np.ndarray, Tensor)):  # which have no one truth
        return True
    return value != unused and bool(value)


def _check_latents(
    pipeline: LevelPipeline, latents: Tensor | None, pictures: int, size: tuple[int, int]
) -> None:
    """Raise SdoptError for latents that are not those of the pictures that were asked for."""
    sides = (side // pipeline.vae_scale_factor for side in size)
    wanted = (pictures, pipeline.unet.config.in_channels, *sides)
    if latents is not None and tuple(latents.shape) != wanted:
        raise SdoptError(
            f"latents are {tuple(latents.shape)}; {pictures} of {size[0]} x {size[1]} px are "
            f"{wanted}; give height and width with latents of another size"
        )


def _prompts(given: dict[str, Any]) -> list[str]:
    prompt = given.get("prompt")
    if prompt is None:
        raise SdoptError("there is no prompt; give a string or a list of strings")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    copies = given.get("num_images_per_prompt") or 1
    return [text for text in prompts for _ in range(copies)]


def _negatives(given: dict[str, Any], prompts: list[str]) -> list[str]:
    negative = given.get("negative_prompt") or ""
    if isinstance(negative, str):
        return [negative] * len(prompts)
    copies = given.get("num_images_per_prompt") or 1
    negatives = [text for text in negative for _ in range(copies)]
    if len(negatives) != len(prompts):
        raise SdoptError(
            f"{len(negative)} negative prompts for {len(prompts) // copies} prompts; give one, or "
            "one for each"
        )
    return negatives
