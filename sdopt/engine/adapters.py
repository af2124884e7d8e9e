"""LoRA folded into the weights that the engine computes with: a view of a module without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sdopt.errors import SdoptError

Module = TypeVar("Module", bound=nn.Module)
FOLDED = ("Linear", "Conv2d", "Embedding")
"""peft's LoRA layers whose product is a change of one weight."""


def engine_view(module: Module, level: str, name: str, called: Sequence[nn.Module] = ()) -> Module:
    """The module as the engine reads it: every layer with adapters is a plain one.

    A view shares all that it can with the module. It is always another object, and so is that of
    each inner module that is `called` from outside: their `forward` may lead back to the view.
    Raises SdoptError naming an adapter that cannot be folded.
    """
    view = _view(module, level, name, {id(inner) for inner in called})
    return _shared(module) if view is module else view  # type: ignore[return-value]


def _view(module: nn.Module, level: str, name: str, called: set[int]) -> nn.Module:
    if is_adapted(module):
        return _plain(module, level, name)
    changed = {
        key: view
        for key, child in module._modules.items()
        if child is not None and (view := _view(child, level, f"{name}.{key}", called)) is not child
    }
    if not changed and id(module) not in called:
        return module
    view = _shared(module)
    view.__dict__["_modules"] = {**module._modules, **changed} if changed else module._modules
    return view


def is_adapted(module: nn.Module) -> bool:
    """Whether peft has put this layer into the place of another one."""
    return type(module).__module__.startswith("peft.") and "base_layer" in module._modules


def adapters_of(module: nn.Module) -> Iterator[Any]:
    """The layers that peft has put in."""
    return (layer for layer in module.modules() if is_adapted(layer))


@contextmanager
def keeping_scales(parts: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """The layers with adapters, whose scales are afterwards what they were, to the last bit.

    diffusers multiplies and divides instead, which may end a bit beside where it began. What has no
    scale, such as IA3, is left out.
    """
    adapted = (layer for part in parts for layer in adapters_of(part))
    layers = [layer for layer in adapted if hasattr(layer, "scaling")]
    before = [dict(layer.scaling) for layer in layers]
    try:
        yield layers
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)


@contextmanager
def scaled_adapters(parts: Sequence[nn.Module], scale: float) -> Iterator[None]:
    """Active adapters times a number in here."""
    if scale == 1:
        yield
        return
    with keeping_scales(parts) as layers:
        for layer in layers:
            layer.scale_layer(scale)
        yield


def _shared(module: Module) -> Module:
    """Another object of the same class with the same attributes, but for `forward`."""
    view: Module = object.__new__(type(module))
    view.__dict__.update({k: v for k, v in vars(module).items() if k != "forward"})
    return view


@torch.no_grad()
def _plain(layer: Any, level: str, name: str) -> nn.Module:
    """The layer below peft's, its weight with the active adapters in it."""
    base: nn.Module = layer.base_layer
    if layer.disable_adapters and layer.merged:
        layer.unmerge()  # as its forward pass does
    if layer.disable_adapters or layer.merged:
        return base
    own = _adapter_names(layer)
    active = [adapter for adapter in layer.active_adapters if adapter in own]
    if not active:
        return base
    _check_foldable(layer, active, level, name)
    plain = _shared(base)
    weight: Any = base.weight
    total = weight.double()
    for adapter in active:
        total = total + layer.scaling[adapter] * _product(layer, adapter).reshape(weight.shape)
    folded = {"weight": _like(weight, total)}
    biased = [one for one in active if _biased(layer, one)]
    if biased:
        bias: Any = base.bias
        added = [layer.scaling[one] * layer.lora_B[one].bias.double() for one in biased]
        folded["bias"] = _like(bias, bias.double() + torch.stack(added).sum(0))
    plain.__dict__["_parameters"] = {**base._parameters, **folded}
    return plain


def _adapter_names(layer: Any) -> set[str]:
    """The adapters that a layer has, of whatever kind: not all of them have a scale."""
    held = (getattr(layer, name) for name in layer.adapter_layer_names)
    return {adapter for one in held if hasattr(one, "keys") for adapter in one.keys()}  # noqa: SIM118


def _product(layer: Any, adapter: str) -> Tensor:
    """What an adapter of scale 1 adds to the weight.

    In float64, which no setting such as TF32 shortens, and rounded once.
    """
    if adapter in layer.lora_embedding_A:
        first, second = layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
        product: Tensor = (second.double() @ first.double()).T
        return product
    first, second = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    product = second.flatten(1).double() @ first.flatten(1).double()
    return product


def _like(weight: Tensor, values: Tensor) -> nn.Parameter:
    """The values in the weight's type and layout."""
    return nn.Parameter(torch.empty_like(weight).copy_(values), requires_grad=False)


def _biased(layer: Any, adapter: str) -> bool:
    return bool(layer.lora_bias.get(adapter, False)) and adapter in layer.lora_B


def _check_foldable(layer: Any, active: list[str], level: str, name: str) -> None:
    """Raise SdoptError for what is not a product of two matrices added to the weight."""
    for adapter in active:
        if problem := _problem(layer, adapter):
            raise SdoptError(
                f"level {level!r} folds LoRA into the weights that it computes with, and adapter "
                f"{adapter!r} of {name} {problem}; use a level without the engine, such as 'final'"
            )


def _problem(layer: Any, adapter: str) -> str | None:
    kind, base = type(layer).__name__, layer.base_layer
    if type(layer).__module__ != "peft.tuners.lora.layer" or kind not in FOLDED:
        return f"is peft's {kind} of {type(layer).__module__}"
    if adapter in layer.lora_variant:
        variant = type(layer.lora_variant[adapter]).__name__
        return f"is no plain LoRA ({'DoRA' if variant.startswith('Dora') else variant})"
    if is_adapted(base):
        return "lies on other adapters"
    if getattr(layer, "fan_in_fan_out", False) and kind == "Linear":
        return "has its weights transposed (fan_in_fan_out)"
    if kind == "Conv2d" and (base.groups != 1 or layer.lora_B[adapter].kernel_size != (1, 1)):
        return "is a convolution of groups, or of two wide kernels"
    if layer.training and getattr(dict(layer.lora_dropout.items()).get(adapter), "p", 0):
        return "drops values at random (it is in training mode)"
    if _biased(layer, adapter) and base.bias is None:
        return "adds a bias where the layer has none"
    return None
