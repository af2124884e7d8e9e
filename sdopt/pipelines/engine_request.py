"""What a call asks of the engine: its arguments, checked and parsed once into a request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdopt.errors import SdoptError

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
MULTIPLE_PX = 64
"""Sides of images: the UNet halves the latents three times, and doubles them exactly."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What a request depends on of the model: its own sides, pixels of a latent, its channels."""

    sides_px: tuple[int, int]
    latent_px: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """A call's arguments: as many `prompts` as images, and as many `negatives` or, without
    guidance, none.

    `lora_scale` is None if nothing was said about it.
    """

    prompts: tuple[str, ...]
    negatives: tuple[str, ...]
    height: int
    width: int
    steps: int
    guidance_scale: float
    generator: torch.Generator | list[torch.Generator] | None
    latents: Tensor | None
    lora_scale: float | None
    output_type: str
    return_dict: bool


def parse_request(level: str, model: ModelSize, given: Mapping[str, Any]) -> EngineRequest:
    """The request of a level's call. Raises SdoptError for what the engine cannot honour."""
    given = {name: number_of(value) for name, value in given.items()}
    check_arguments(level, given)
    height, width = _size(model, given)
    prompts = _prompts(given)
    guidance_scale = float(given["guidance_scale"])
    negatives = _negatives(given, prompts) if guidance_scale > 1 else ()
    _check_latents(model, given.get("latents"), len(prompts), (height, width))
    attention = given.get("cross_attention_kwargs")
    return EngineRequest(
        prompts=prompts,
        negatives=negatives,
        height=height,
        width=width,
        steps=int(given["num_inference_steps"]),
        guidance_scale=guidance_scale,
        generator=given.get("generator"),
        latents=given.get("latents"),
        lora_scale=float(number_of(attention.get("scale", 1.0))) if attention else None,
        output_type=given.get("output_type", "pil"),
        return_dict=bool(given.get("return_dict", True)),
    )


def check_arguments(level: str, given: Mapping[str, Any]) -> None:
    """Raise SdoptError naming an argument that the engine cannot honour."""
    unused = [n for n, v in given.items() if n not in ARGUMENTS and _is_used(v, IGNORED.get(n))]
    if unused:
        raise SdoptError(
            f"level {level!r} runs as one graph, which cannot use {', '.join(unused)}; "
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


def _size(model: ModelSize, given: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width in px, as diffusers: one without the other is as if none were given."""
    size: tuple[Any, ...] = (given.get("height"), given.get("width"))
    if any(side is None or (isinstance(side, Real) and not side) for side in size):
        size = model.sides_px
    for name, value in zip(("height", "width"), size, strict=True):
        if not isinstance(value, Integral) or value < MULTIPLE_PX or value % MULTIPLE_PX:
            raise SdoptError(
                f"{name} is {_shown(value)}; this level takes multiples of {MULTIPLE_PX} px, from "
                f"{MULTIPLE_PX} on; use one, or a level without the engine, such as 'final'"
            )
    return int(size[0]), int(size[1])


def _check_latents(
    model: ModelSize, latents: Tensor | None, images: int, size: tuple[int, int]
) -> None:
    """Raise SdoptError for latents that are not those of the images that were asked for."""
    sides = (side // model.latent_px for side in size)
    wanted = (images, model.channels, *sides)
    if latents is not None and tuple(latents.shape) != wanted:
        raise SdoptError(
            f"latents are {tuple(latents.shape)}; {images} of {size[0]} x {size[1]} px are "
            f"{wanted}; give height and width with latents of another size"
        )


def _prompts(given: Mapping[str, Any]) -> tuple[str, ...]:
    prompt = given.get("prompt")
    if prompt is None:
        raise SdoptError("there is no prompt; give a string or a list of strings")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    copies = given.get("num_images_per_prompt") or 1
    return tuple(text for text in prompts for _ in range(copies))


def _negatives(given: Mapping[str, Any], prompts: tuple[str, ...]) -> tuple[str, ...]:
    negative = given.get("negative_prompt") or ""
    if isinstance(negative, str):
        return (negative,) * len(prompts)
    copies = given.get("num_images_per_prompt") or 1
    negatives = tuple(text for text in negative for _ in range(copies))
    if len(negatives) != len(prompts):
        raise SdoptError(
            f"{len(negative)} negative prompts for {len(prompts) // copies} prompts; give one, or "
            "one for each"
        )
    return negatives


def _is_used(value: Any, unused: Any) -> bool:
    if isinstance(value, (np.ndarray, Tensor)):  # which have no one truth
        return True
    return value != unused and bool(value)
