"""The parts of a pipeline that a whole image's graph calls, and what was put around them."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from sdopt.engine.stock import foreign
from sdopt.engine.watch import HOOKS, Watch
from sdopt.errors import SdoptError

ADVICE = "undo that, or use a level without the engine, such as 'final'"


def parts_of(pipeline: Any) -> dict[str, nn.Module]:
    """The parts that generate, by name."""
    return {"text_encoder": pipeline.text_encoder, "unet": pipeline.unet, "vae": pipeline.vae}


class GraphParts:
    """Parts with forward passes of their own, as a graph was captured of them.

    `version` is another one after each change, which a graph captured anew computes as well:
    compiled modules compile themselves anew. What runs Python at each call is refused by name.
    """

    fingerprints = ()
    """None: weights are read where they are, so whatever is written there is used."""

    def __init__(self, pipeline: Any, level: str) -> None:
        self.level, self.version = level, 0
        self.looked_at = False
        self._names = tuple(parts_of(pipeline))
        self._parts = [weakref.ref(part) for part in parts_of(pipeline).values()]
        self._decoder = weakref.ref(pipeline.vae.decoder)
        self._watch: Watch | None = None
        self.refresh()

    def has_changed(self) -> bool:
        """Whether `refresh` would do something."""
        return self._watch is None or self._watch.has_changed()

    def refresh(self) -> None:
        """Take changes over. Raises SdoptError for what a graph would leave out."""
        if not self.has_changed():
            return
        modules = {name: ref() for name, ref in zip(self._names, self._parts, strict=True)}
        parts = {name: module for name, module in modules.items() if module is not None}
        decoder = self._decoder()
        called = () if decoder is None else (decoder,)
        if patch := foreign(parts, called):
            raise SdoptError(
                f"level {self.level!r} generates with one graph, which would leave out {patch}; "
                f"{ADVICE}"
            )
        self._watch = Watch([*parts.values()], called)
        self.version += 1


class Roots:
    """The modules that are called by name, and their forward passes as they were."""

    def __init__(self, pipeline: Any, level: str) -> None:
        self.level = level
        called = {**parts_of(pipeline), "vae.decoder": pipeline.vae.decoder}
        self._called = [
            (name, weakref.ref(module), vars(module).get("forward"))
            for name, module in called.items()
        ]

    def check(self, *, replayed: bool) -> None:
        """Raise SdoptError for another forward pass; if a graph is replayed, for hooks as well."""
        for name, ref, forward in self._called:
            module = ref()
            if module is None:
                continue
            if vars(module).get("forward") is not forward:
                self._refuse(f"the forward that was put into a module, {name}")
            if replayed and any(getattr(module, hooks) for hooks in HOOKS):
                self._refuse(f"the forward hook of a module, {name}")

    def _refuse(self, patch: str) -> None:
        raise SdoptError(
            f"level {self.level!r} uses graphs and kernels of its own, which would leave out "
            f"{patch}; {ADVICE}"
        )
