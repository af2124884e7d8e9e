"""What is generated: named prompts with seeds, and one call that turns a request into an image."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdopt.errors import BrokenFileError, SdoptError
from sdopt.util.files import MOST_BYTES, cause, read_plain
from sdopt.weights.sources import Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sdopt.pipelines.pipeline import LevelPipeline

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
FIELDS = ("name", "prompt", "negative_prompt", "seed")
_ONE_A_LINE = f"give one JSON object a line, with {', '.join(FIELDS)}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One image to make. `name` is also the file name of its baseline image."""

    name: str
    prompt: str
    negative_prompt: str = ""
    seed: int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The requests of a run. `baseline_set` names its folder below `baselines/images/`."""

    baseline_set: str
    requests: tuple[Request, ...]


EMBEDDED_REQUESTS: tuple[Request, ...] = (
    Request(
        name="red-star",
        prompt="a large striped red star at the top left on a blue background",
        seed=1,
    ),
    Request(
        name="green-circle",
        prompt="a medium green circle at the center on a white background",
        negative_prompt="a blue background",
        seed=2,
    ),
    Request(
        name="blue-ring",
        prompt="a large dotted blue ring at the bottom right on a yellow background",
        seed=3,
    ),
    Request(
        name="star-and-ring",
        prompt="a large checkered red star at the top left"
        " and a small blue ring at the bottom center on a yellow background",
        seed=4,
    ),
    Request(
        name="two-squares",
        prompt="a medium striped yellow square at the bottom left"
        " and a medium red square at the top right on a black background",
        negative_prompt="a small green ring",
        seed=5,
    ),
)

PHOTO_REQUESTS: tuple[Request, ...] = (
    Request(
        name="astronaut",
        prompt="a photograph of an astronaut riding a horse on the moon, detailed, 35mm",
        negative_prompt="blurry, low quality",
        seed=1,
    ),
    Request(
        name="castle",
        prompt="an oil painting of a castle above a foggy valley at sunrise",
        negative_prompt="text, watermark",
        seed=2,
    ),
    Request(name="cat", prompt="a close-up portrait of a tabby cat in a library", seed=3),
    Request(
        name="street",
        prompt="a rainy street in Tokyo at night, neon signs, reflections",
        negative_prompt="people",
        seed=4,
    ),
)


def load_workload(source: Source, prompts: Path | None = None) -> Workload:
    """The built-in requests of a source, or those of a JSON lines file of the user's.

    Raises BrokenFileError for a bad line, such as one with a word that the source cannot generate.
    """
    requests = read_prompts(prompts, source) if prompts else _built_in(source)
    return Workload(baseline_set=set_name(source.name, prompts), requests=requests)


def set_name(source: str, prompts: Path | None) -> str:
    """The baseline set of a source: a user's own prompts are one of their own."""
    return f"{source}--{prompts.stem}" if prompts else source


def _built_in(source: Source) -> tuple[Request, ...]:
    if source.is_embedded:
        return EMBEDDED_REQUESTS
    # Random weights draw noise, 0.7 MB an image: one shows as well as four that nothing drifted.
    return PHOTO_REQUESTS[:1] if source.kind == "random" else PHOTO_REQUESTS


def read_prompts(path: Path, source: Source) -> tuple[Request, ...]:
    """The requests of a JSON lines file: `name`, `prompt`, `seed` and maybe `negative_prompt`.

    Empty lines are skipped. Raises BrokenFileError naming file and line.
    """
    try:
        # Not splitlines(): a JSON string may hold U+2028 and other line separators.
        lines = read_plain(path, MOST_BYTES).decode("utf-8").split("\n")
    except OSError as error:
        raise BrokenFileError(
            f"{path} cannot be read: {cause(error)}; give a file of JSON lines, such as "
            '{"name": "cat", "prompt": "a cat", "negative_prompt": "", "seed": 1}'
        ) from error
    except UnicodeDecodeError as error:
        raise BrokenFileError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    requests: dict[str, Request] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        request = _parse_line(line, f"{path}:{number}")
        _check_words(source, request, f"{path}:{number}")
        if request.name in requests:
            raise BrokenFileError(f"{path}:{number}: the name {request.name!r} was used before")
        requests[request.name] = request
    if not requests:
        raise BrokenFileError(f"{path}: holds no prompt; {_ONE_A_LINE}")
    return tuple(requests.values())


def _parse_line(line: str, where: str) -> Request:
    try:
        fields = json.loads(line)
    except ValueError as error:
        # The whole message would tell a line of its own: line 1, of this one line.
        what = getattr(error, "msg", error)
        raise BrokenFileError(f"{where}: not JSON: {what}; {_ONE_A_LINE}") from error
    if not isinstance(fields, dict):
        raise BrokenFileError(f"{where}: not a JSON object; {_ONE_A_LINE}")
    unknown = sorted(set(fields) - set(FIELDS))
    missing = [f for f in FIELDS if f not in fields and f != "negative_prompt"]
    if unknown or missing:
        raise BrokenFileError(
            f"{where}: unknown fields {unknown}, missing fields {missing}; "
            f"the fields are {', '.join(FIELDS)}"
        )
    _check_types(fields, where)
    return Request(**fields)


def _check_types(fields: dict[str, Any], where: str) -> None:
    for name in ("name", "prompt", "negative_prompt"):
        if not isinstance(fields.get(name, ""), str):
            raise BrokenFileError(f"{where}: {name} is {fields[name]!r}, not a string")
    if not NAME_PATTERN.fullmatch(fields["name"]):
        raise BrokenFileError(
            f"{where}: name {fields['name']!r} must match {NAME_PATTERN.pattern}: "
            "it is the file name of the baseline image"
        )
    seed = fields["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise BrokenFileError(f"{where}: seed is {seed!r}, not an integer from 0 to 2**63 - 1")


def _check_words(source: Source, request: Request, where: str) -> None:
    try:
        source.check_prompt(request.prompt)
        source.check_prompt(request.negative_prompt)
    except SdoptError as error:
        raise BrokenFileError(f"{where}: {error}") from error


def generate(pipeline: LevelPipeline, request: Request, **settings: Any) -> NDArray[np.float32]:
    """The request's image, of shape (height, width, 3), float32 from 0 to 1.

    The noise is drawn on the CPU in float32, so a seed means the same image on every device, in
    every dtype. `settings` are further arguments of the pipeline.
    """
    import torch

    from sdopt.pipelines.noise import portable_noise

    with portable_noise():
        image: NDArray[np.float32] = pipeline(
            request.prompt,
            negative_prompt=request.negative_prompt,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type="np",
            **settings,
        ).images[0]
    return image


def generate_batch(
    pipeline: LevelPipeline, requests: Sequence[Request], **settings: Any
) -> NDArray[np.float32]:
    """The requests' images in one call, of shape (requests, height, width, 3); see `generate`."""
    import torch

    from sdopt.pipelines.noise import portable_noise

    with portable_noise():
        images: NDArray[np.float32] = pipeline(
            [request.prompt for request in requests],
            negative_prompt=[request.negative_prompt for request in requests],
            generator=[torch.Generator("cpu").manual_seed(request.seed) for request in requests],
            output_type="np",
            **settings,
        ).images
    return images
