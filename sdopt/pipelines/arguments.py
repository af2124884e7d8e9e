"""The arguments of a diffusers call, without those that are given as their own defaults."""

from __future__ import annotations

import inspect
import logging
from typing import Any

from diffusers import StableDiffusionPipeline

logger = logging.getLogger(__name__)

_SIGNATURE = inspect.signature(StableDiffusionPipeline.__call__)
DEFAULTS = {
    name: parameter.default
    for name, parameter in _SIGNATURE.parameters.items()
    if parameter.default is not parameter.empty
}
"""What diffusers takes for each argument that is left out."""
UNUSED: dict[str, Any] = {"callback_on_step_end_tensor_inputs": None}
"""Further values that diffusers takes as it takes the default."""


def arguments_of(pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What was given, by name. Raises TypeError as a call does."""
    call = _SIGNATURE.bind(pipeline, *args, **kwargs)
    arguments = {**call.arguments, **call.arguments.get("kwargs", {})}
    return {name: arguments[name] for name in arguments if name not in ("self", "kwargs")}


def without_defaults(arguments: dict[str, Any], but: dict[str, Any]) -> dict[str, Any]:
    """These arguments less those that say nothing; `but` names others' defaults, which are kept."""
    return {
        name: value
        for name, value in arguments.items()
        if name in but or not (name in DEFAULTS and _is_default(name, value))
    }


def _is_default(name: str, value: Any) -> bool:
    """Whether diffusers does the same without it. Of one type: an array is equal to nothing."""
    choices = [DEFAULTS[name], *([UNUSED[name]] if name in UNUSED else [])]
    return any(type(value) is type(one) and value == one for one in choices)


def known_to_processors(unet: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Of `cross_attention_kwargs` those that this UNet's attention uses, and a warning of others.

    diffusers warns and leaves them out as well, but from within, which compiled code cannot. The
    scale is that of LoRA, which diffusers applies with peft alone.
    """
    from diffusers import utils

    known = {"scale", "ip_adapter_masks"} if utils.USE_PEFT_BACKEND else {"ip_adapter_masks"}
    for processor in unet.attn_processors.values():
        known |= inspect.signature(processor.__call__).parameters.keys()
    if unused := [name for name in given if name not in known]:
        logger.warning("nothing uses %s of cross_attention_kwargs here", ", ".join(unused))
    return {name: value for name, value in given.items() if name in known}
