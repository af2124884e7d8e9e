"""The components that a call of a pipeline needs, and refusal of those that are None."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

from sdopt.errors import SdoptError


def check_components(pipeline: Any, arguments: Mapping[str, Any]) -> None:
    """Raise SdoptError naming the components that this call needs and the pipeline has not."""
    missing = [name for name in _needed(pipeline, arguments) if getattr(pipeline, name) is None]
    if missing:
        raise SdoptError(
            f"the {' and the '.join(missing)} of this pipeline is None, and this call needs it; "
            "put it back, or load the level again with "
            f"sdopt.load_pipeline({pipeline.level.name!r})"
        )


def _needed(pipeline: Any, arguments: Mapping[str, Any]) -> Iterator[str]:
    yield from ("unet", "scheduler")
    output_type = arguments.get("output_type")
    if not (isinstance(output_type, str) and output_type == "latent"):
        yield "vae"
        if pipeline.safety_checker is not None:
            yield "feature_extractor"
    if _encodes_text(arguments):
        yield from ("tokenizer", "text_encoder")
    if arguments.get("ip_adapter_image") is not None:
        yield "image_encoder"


def _encodes_text(arguments: Mapping[str, Any]) -> bool:
    """Whether a prompt is given as words, or left out and so the empty words of guidance."""
    scale = arguments["guidance_scale"]
    guided = not (isinstance(scale, Real) and scale <= 1)
    wanted = ("prompt_embeds", *(("negative_prompt_embeds",) if guided else ()))
    return any(arguments.get(name) is None for name in wanted)
