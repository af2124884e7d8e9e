"""What the engine's own forward passes were written for, module by module, and what is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from sdopt.engine.adapters import is_adapted
from sdopt.engine.watch import ITS_OWN

HONOURED = frozenset(
    {
        *("eps", "num_groups", "heads"),  # read from the module at each image
        *("use_slicing", "use_tiling", "scaling_factor"),  # so are the decoder's, by diffusers
        *("tile_sample_min_size", "tile_latent_min_size", "tile_overlap_factor"),
        *("training", "gradient_checkpointing"),  # change nothing where nothing is dropped
        *("sample_size", "lora_scale"),  # the latter notes what was fused
        *("num_embeddings", "vocab_size"),  # textual inversion adds rows
        "dtype",  # a note of a configuration: weights tell their own
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
            options = ((k, getattr(value, k, v)) for k, v in value.items() if _matters(k))
            yield from ((f"{path}.config.{k}", v) for k, v in options)
        elif name == "config":  # that of transformers
            options = ((k, v) for k, v in vars(value).items() if _matters(k) and _is_plain(v))
            yield from ((f"{path}.config.{k}", v) for k, v in options)
        elif name == "processor":
            yield f"{path}.processor", type(value).__name__
        elif _matters(name) and _is_plain(value):
            yield f"{path}.{name}", value
        elif _matters(name) and callable(value) and name not in ITS_OWN:
            yield f"{path}.{name}", getattr(value, "__qualname__", type(value).__name__)
    for name, weight in module._parameters.items():
        yield f"{path}.{name}", None if weight is None else _shape(module, weight)
    for name, buffer in module._buffers.items():
        yield f"{path}.{name}", None if buffer is None else _values(module, buffer)


def _shape(module: nn.Module, tensor: Tensor) -> str:
    sides = tensor.shape[1:] if isinstance(module, nn.Embedding) else tensor.shape
    return f"of shape {tuple(sides)}"


def _values(module: nn.Module, tensor: Tensor) -> str:
    """A buffer is no weight that may be trained, so the engine is written for its values."""
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return f"{_shape(module, tensor)} and content {crc32(content):08x}"


def _matters(name: str) -> bool:
    """Whether arithmetic may depend on an attribute: private ones are a library's own notes."""
    return name not in HONOURED and not name.startswith("_")


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))


def _dropped(module: nn.Module) -> float:
    """The share of values that a module drops while it is trained."""
    share = vars(module).get("p" if type(module).__name__.startswith("Dropout") else "dropout")
    return share if isinstance(share, float) else 0.0
