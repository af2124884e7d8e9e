"""What the engine's own forward passes were written for, module by module, and what is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from sdopt.engine.adapters import is_adapted

READ = frozenset(
    {
        *("eps", "num_groups", "heads"),  # read from the module at each image
        *("use_slicing", "use_tiling", "scaling_factor"),  # so are the decoder's, by diffusers
        *("tile_sample_min_size", "tile_latent_min_size", "tile_overlap_factor"),
        *("training", "gradient_checkpointing"),  # change nothing where nothing is dropped
        *("_name_or_path", "sample_size"),
    }
)
"""Attributes and options whose change is honoured, or changes nothing."""
CONVOLUTION: Mapping[str, Any] = {"padding_mode": "zeros", "dilation": (1, 1), "groups": 1}
"""What the engine's convolutions compute."""

Description = dict[str, Any]


def described(parts: Mapping[str, nn.Module]) -> Description:
    """Class, attributes and shapes of weights of every module, by name; adapters left aside."""
    return {
        key: value
        for part, module in parts.items()
        for path, inner in _inside(part, module)
        for key, value in _facts(path, inner)
    }


def difference(now: Description, then: Description) -> str | None:
    """The first that is another one now, in words; None is the same as nothing."""
    for key in (*then, *(key for key in now if key not in then)):
        before, after = (values.get(key) for values in (then, now))
        if before != after:
            return f"{key} is {after}, it was {before}"
    return None


def unsupported(parts: Mapping[str, nn.Module]) -> str | None:
    """What in these parts the engine's kernels do not compute, in words, whenever it was put in."""
    for part, module in parts.items():
        for path, inner in _inside(part, module):
            if isinstance(inner, nn.Conv2d):
                for name, value in CONVOLUTION.items():
                    if getattr(inner, name) != value:
                        return f"{path}.{name} is {getattr(inner, name)!r}"
            if inner.training and _dropped(inner):
                return f"{path} drops values at random (it is in training mode)"
    return None


def _inside(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module below, and itself, as if peft had put nothing in."""
    if is_adapted(module):
        inner = module._modules["base_layer"]
        assert inner is not None
        yield from _inside(path, inner)
        return
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _inside(f"{path}.{name}", child)


def _facts(path: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield path, type(module).__name__
    for name, value in module.__dict__.items():
        if name == "_internal_dict":  # the configuration
            yield from ((f"{path}.config.{k}", v) for k, v in value.items() if k not in READ)
        elif name == "processor":
            yield f"{path}.processor", type(value).__name__
        elif name not in READ and _is_plain(value):
            yield f"{path}.{name}", value
    for tensors in (module._parameters, module._buffers):
        for name, tensor in tensors.items():
            yield f"{path}.{name}", None if tensor is None else f"of shape {tuple(tensor.shape)}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))


def _dropped(module: nn.Module) -> float:
    """The share of values that a module drops while it is trained."""
    share = getattr(module, "p", 0.0) if isinstance(module, nn.modules.dropout._DropoutNd) else 0.0
    own = getattr(module, "dropout", 0.0)
    return share or (own if isinstance(own, float) else 0.0)
