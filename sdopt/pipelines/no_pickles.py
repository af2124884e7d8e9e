"""No weights are read from a pickle, which can run any code: safetensors alone.

diffusers and transformers read every other format through `torch.load`, whatever its files are
called: that door is shut while a pipeline of this package reads weights, for its thread alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sdopt.errors import SourceError


class _Door:
    """How many are reading weights, by thread; `torch.load` is replaced while there are any."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = threading.local()
        self.readers = 0
        self.original: Any = None

    def shut(self) -> None:
        with self.lock:
            if self.readers == 0:
                self.original = torch.load
                torch.load = self._load  # type: ignore[assignment]
            self.readers += 1
        self.inside.depth = getattr(self.inside, "depth", 0) + 1

    def open(self) -> None:
        self.inside.depth -= 1
        with self.lock:
            self.readers -= 1
            if self.readers == 0:
                torch.load = self.original

    def _load(self, file: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self.inside, "depth", 0):
            self.inside.refused = str(file)
            raise SourceError(_refusal(str(file)))
        return self.original(file, *args, **kwargs)


_DOOR = _Door()


@contextmanager
def without_pickles() -> Iterator[None]:
    """Raise SourceError, that names the file, if something in here would read a pickle."""
    _DOOR.inside.refused = None
    _DOOR.shut()
    try:
        yield
    except Exception as error:
        # diffusers says of any error that the file cannot be read.
        if file := _DOOR.inside.refused:
            raise SourceError(_refusal(file)) from error
        raise
    finally:
        _DOOR.open()


def _refusal(file: str) -> str:
    return (
        f"{file} is a pickle, which can run any code; weights are read from safetensors alone: "
        "give a .safetensors file, or convert it where you trust it"
    )


class WithoutPickles:
    """Loaders of a diffusers pipeline that read no pickle; first among a pipeline's bases."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As the pipeline's own, of safetensors alone."""
        with without_pickles():
            return super().from_pretrained(*args, **kwargs)  # type: ignore[misc]

    @classmethod
    def from_single_file(cls, *args: Any, **kwargs: Any) -> Any:
        """As the pipeline's own, of safetensors alone."""
        with without_pickles():
            return super().from_single_file(*args, **kwargs)  # type: ignore[misc]

    def load_lora_weights(self, *args: Any, **kwargs: Any) -> Any:
        """As the pipeline's own, of safetensors or of tensors."""
        with without_pickles():
            return super().load_lora_weights(*args, **kwargs)  # type: ignore[misc]

    def load_textual_inversion(self, *args: Any, **kwargs: Any) -> Any:
        """As the pipeline's own, of safetensors or of tensors."""
        with without_pickles():
            return super().load_textual_inversion(*args, **kwargs)  # type: ignore[misc]

    def load_ip_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """As the pipeline's own, of safetensors or of tensors."""
        with without_pickles():
            return super().load_ip_adapter(*args, **kwargs)  # type: ignore[misc]
