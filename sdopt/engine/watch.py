"""Notice that modules or weights changed since a graph was captured or weights were joined."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class Watch:
    """The modules and weights of some parts as they are now.

    Writing in place through a weight's `.data`, or to an inference tensor, leaves no trace.
    """

    def __init__(self, parts: Sequence[torch.nn.Module]) -> None:
        # Their dictionaries: walking the modules at each picture would take milliseconds.
        modules = [module for part in parts for module in part.modules()]
        self._submodules = [module._modules for module in modules if module._modules]
        self._parameters = [module._parameters for module in modules if module._parameters]
        self._children, self._places = self._children_now(), _places(self._weights_now())
        # A place says nothing once its weight is freed: the next one may be put there.
        self._held = [
            StorageWeakRef(w.untyped_storage())  # type: ignore[no-untyped-call]
            for w in self._weights_now()
        ]
        self._storages = {reference.cdata for reference in self._held}

    def has_changed(self) -> bool:
        """Whether a module was replaced, or a weight moved, was replaced or was written to."""
        return (
            self._children_now() != self._children
            or _places(self._weights_now()) != self._places
            or any(map(torch.UntypedStorage._expired, self._storages))
        )

    def _children_now(self) -> list[torch.nn.Module | None]:
        return [child for children in self._submodules for child in children.values()]

    def _weights_now(self) -> list[Tensor]:
        return [w for weights in self._parameters for w in weights.values() if w is not None]


def _places(weights: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Where each weight is, and how often it was written to, which inference tensors don't tell."""
    return [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights]
