"""What `POST /v1/images/generations` takes, every value checked: its sender may be anybody.

The fields are those of https://platform.openai.com/docs/api-reference/images/create, and `seed`,
`negative_prompt`, `num_inference_steps` and `guidance_scale`. What cannot be honoured is refused by
name; nothing is ignored but `user`, which changes no image.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdopt.errors import SdoptError
from sdopt.service.failures import ApiError, invalid
from sdopt.service.queueing import Job, Kind
from sdopt.service.settings import Limits, Shape

SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
MOST_SEED = 2**63
LARGEST_GUIDANCE = 100.0
SHOWN = 60
"""Characters of a wrong value that an error repeats."""

FIXED: dict[str, tuple[Any, ...]] = {
    "response_format": ("b64_json",),
    "output_format": ("png",),
    "quality": ("auto", "standard"),
    "background": ("auto", "opaque"),
    "stream": (False,),
    "output_compression": (100,),
    "partial_images": (0,),
    "style": (),
    "moderation": (),
}
"""OpenAI's other fields, with the values that mean what is done here anyway."""

Seed = Annotated[int, Field(ge=0, lt=MOST_SEED)]


class ImagesRequest(BaseModel):
    """The body. Numbers are JSON's numbers, never text; other fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field(min_length=1)
    model: str | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    size: str | None = None
    user: str | None = None
    seed: Seed | None = None
    negative_prompt: str | None = None
    num_inference_steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: (
        Annotated[float, Field(ge=0, le=LARGEST_GUIDANCE, allow_inf_nan=False)] | None
    ) = None
    response_format: Any = None
    output_format: Any = None
    quality: Any = None
    background: Any = None
    stream: Any = None
    output_compression: Any = None
    partial_images: Any = None
    style: Any = None
    moderation: Any = None


def parsed(body: bytes) -> ImagesRequest:
    """The request in a body. Raises ApiError 400 that names the field."""
    try:
        request = ImagesRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refused(error) from None
    for name, values in FIXED.items():
        given = getattr(request, name)
        if given is not None and not any(given is one or given == one for one in values):
            choices = " or ".join(repr(one) for one in values)
            instead = f"leave it out or give {choices}" if values else "leave it out"
            raise invalid(
                f"{name} {_shown(given)} is not supported; {instead}", name, "unsupported_value"
            )
    return request


def jobs_of(
    request: ImagesRequest, limits: Limits, check_prompt: Callable[[str], None]
) -> list[Job]:
    """One job for each image. Raises ApiError for what the limits, level or source do not allow."""
    _check_model(request.model, limits)
    images = request.n or 1
    if images > limits.max_images:
        raise invalid(f"n is {_shown(images)}; at most {limits.max_images} images a request", "n")
    negative = request.negative_prompt or ""
    for name, text in (("prompt", request.prompt), ("negative_prompt", negative)):
        _check_text(name, text, limits, check_prompt)
    kind = _kind(request, limits)
    first = random.SystemRandom().randrange(2**32) if request.seed is None else request.seed
    loop = asyncio.get_running_loop()
    return [
        Job(
            kind=kind,
            prompt=request.prompt,
            negative_prompt=negative,
            seed=(first + index) % MOST_SEED,
            future=loop.create_future(),
        )
        for index in range(images)
    ]


def _check_model(model: str | None, limits: Limits) -> None:
    if model is not None and model != limits.level:
        raise ApiError(
            404,
            "model_not_found",
            f"model {_shown(model)} is not served here; this is {limits.level!r}",
            param="model",
        )


def _check_text(name: str, text: str, limits: Limits, check_prompt: Callable[[str], None]) -> None:
    if len(text) > limits.max_prompt_length:
        raise invalid(
            f"{name} has {len(text)} characters; at most {limits.max_prompt_length} are taken",
            name,
            "string_above_max_length",
        )
    if text.strip():
        try:
            check_prompt(text)
        except SdoptError as error:
            raise invalid(str(error), name) from error
    elif name == "prompt":
        raise invalid("prompt is empty or blank; say what the image shows", name)


def _kind(request: ImagesRequest, limits: Limits) -> Kind:
    """Raises ApiError for a size or a number of steps that is not served."""
    facts, default = limits.facts, limits.shapes[0]
    steps = request.num_inference_steps or facts.steps
    if steps > limits.max_steps and steps != facts.steps:
        message = f"{_shown(steps)} steps; at most {limits.max_steps}"
        raise invalid(message, "num_inference_steps")
    width, height = default.width, default.height
    if request.size not in (None, "auto"):
        width, height = _sides(str(request.size), limits)
    guidance = request.guidance_scale
    kind = Kind(
        width=width,
        height=height,
        steps=steps,
        guidance_scale=facts.guidance_scale if guidance is None else guidance,
    )
    if facts.compiles and not limits.cold:
        _check_warm(kind, limits)
    return kind


def _sides(size: str, limits: Limits) -> tuple[int, int]:
    multiple, most = limits.facts.multiple_px, limits.max_side_px
    found = SIZE.fullmatch(size)
    sides = (int(found[1]), int(found[2])) if found else (0, 0)
    if not all(multiple <= side <= most and side % multiple == 0 for side in sides):
        raise invalid(
            f"size is {_shown(size)}; give WIDTHxHEIGHT in pixels, multiples of {multiple} from "
            f"{multiple} to {most}, such as {limits.shapes[0].width}x{limits.shapes[0].height}",
            "size",
        )
    return sides


def _check_warm(kind: Kind, limits: Limits) -> None:
    """No request compiles: what was not made ready at the start is refused."""
    sizes = [f"{shape.width}x{shape.height}" for shape in limits.shapes]
    steps = limits.facts.steps
    if Shape(width=kind.width, height=kind.height, steps=kind.steps) not in limits.shapes:
        param = "size" if kind.steps == steps else "num_inference_steps"
        what = f"{kind.width}x{kind.height} at {kind.steps} steps was not made ready"
    elif kind.guidance_scale <= 1:
        param, what = "guidance_scale", "images without guidance were not made ready"
    else:
        return
    raise invalid(
        f"{what} when the service was started; it has {', '.join(sizes)} at {steps} steps with "
        "guidance_scale above 1; sdopt serve --sizes makes others ready, --cold compiles others",
        param,
        "not_warm",
    )


def _refused(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False)[0]
    kind, place = first["type"], first["loc"]
    if kind == "json_invalid":
        return ApiError(400, "invalid_json", f"the body is not JSON: {first['msg']}")
    if not place:
        return ApiError(400, "invalid_json", "the body is no JSON object")
    name = _shown(str(place[0])).strip("'\"")
    if kind == "extra_forbidden":
        return invalid(f"unknown field {name!r}; remove it", name, "unknown_parameter")
    if kind == "missing":
        return invalid(f"there is no {name}", name, "missing_required_parameter")
    return invalid(f"{name} is {_shown(first['input'])}: {first['msg']}", name)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
