"""Notice that modules or weights changed since a graph was captured or weights were joined."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

Places = tuple[tuple[int, ...], tuple[int, ...]]
_version = attrgetter("_version")


class Watch:
    """The modules and weights of some parts as they are now.

    The memory of the weights is kept: a graph may read it once more before it is known that they
    moved, and none can take a freed one's place. Writing in place through a weight's `.data`, or to
    an inference tensor, leaves no trace.
    """

    def __init__(self, parts: Sequence[torch.nn.Module]) -> None:
        # Their dictionaries: walking the modules at each picture would take milliseconds.
        modules = [module for part in parts for module in part.modules()]
        self._modules = modules
        self._attentions = [module for module in modules if hasattr(module, "processor")]
        self._classes, self._processors = self._classes_now(), self._processors_now()
        self._submodules = [module._modules for module in modules if module._modules]
        self._parameters = [module._parameters for module in modules if module._parameters]
        self._children, self._places = self._children_now(), _places(self._weights_now())
        self._memory = [weight.detach() for weight in self._weights_now()]

    def has_changed(self) -> bool:
        """Whether a module was replaced, or a weight moved, was replaced or was written to."""
        return (
            self._children_now() != self._children or _places(self._weights_now()) != self._places
        )

    def patched(self) -> str | None:
        """The class that was put in the place of a module's own, or of its attention processor."""
        pairs = (
            (self._classes_now(), self._classes),
            (self._processors_now(), self._processors),
        )
        for now, then in pairs:
            if now != then:
                return next(a.__name__ for a, b in zip(now, then, strict=True) if a is not b)
        return None

    def _classes_now(self) -> list[type]:
        return [*map(type, self._modules)]

    def _processors_now(self) -> list[type]:
        return [type(module.processor) for module in self._attentions]

    def _children_now(self) -> list[torch.nn.Module | None]:
        return [child for children in self._submodules for child in children.values()]

    def _weights_now(self) -> list[Tensor]:
        return [w for weights in self._parameters for w in weights.values() if w is not None]


def _places(weights: Sequence[Tensor]) -> Places:
    """Where each weight is, and how often it was written to, which inference tensors don't tell.

    A thousand weights of which none is in the processor's cache: `map` saves what it can.
    """
    try:
        versions = tuple(map(_version, weights))
    except RuntimeError:
        versions = tuple(0 if weight.is_inference() else weight._version for weight in weights)
    return tuple(map(Tensor.data_ptr, weights)), versions
