"""Where the weights of a pipeline's parts are and of what type, and refusal of what moves them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from sdopt.engine.adapters import is_adapted
from sdopt.engine.parts import ADVICE, parts_of
from sdopt.errors import SdoptError


def check_placed(pipeline: Any, level: str) -> None:
    """Raise SdoptError for weights that hooks move or convert at each call.

    Hooks deeper inside are refused by the engine's parts; these come first, since already the noise
    takes its type and its device from the UNet.
    """
    decoder, first = pipeline.vae.decoder, pipeline.unet.conv_in
    hooked = {**parts_of(pipeline), "vae.decoder": decoder, "unet.conv_in": first}
    for name, module in hooked.items():
        if hasattr(module, "_hf_hook"):
            what = f"accelerate's {type(module._hf_hook).__name__} of {name} (offloading)"
        elif hasattr(module, "_diffusers_hook"):
            hooks = ", ".join(module._diffusers_hook.hooks)
            what = f"diffusers' hooks of {name} ({hooks})"
        else:
            continue
        raise SdoptError(
            f"level {level!r} reads weights where they were when it was loaded, and does not "
            f"follow {what}; {ADVICE}"
        )


def check_alike(parts: Mapping[str, nn.Module], level: str) -> None:
    """Raise SdoptError for weights of several types or devices, or on none; adapters left aside."""
    first: tuple[str, Tensor] | None = None
    for name, weight in (one for part, m in parts.items() for one in _own_weights(part, m)):
        first = first or (name, weight)
        if weight.is_meta or _kind(weight) != _kind(first[1]):
            beside = "" if weight.is_meta else f", {first[0]} of {_kind(first[1])}"
            raise SdoptError(
                f"level {level!r} computes with weights of one type on one device: {name} is of "
                f"{_kind(weight)}{beside}; undo that, or load the level again"
            )


def _kind(weight: Tensor) -> str:
    return f"{weight.dtype} on {weight.device}"


def _own_weights(path: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight as if peft had put nothing in."""
    if is_adapted(module):
        base = module._modules["base_layer"]
        assert base is not None
        yield from _own_weights(path, base)
        return
    for name, weight in module._parameters.items():
        if weight is not None:
            yield f"{path}.{name}", weight
    for name, child in module._modules.items():
        if child is not None:
            yield from _own_weights(f"{path}.{name}", child)
