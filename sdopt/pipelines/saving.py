"""Weights as they are saved: contiguous, each in memory of its own, whatever their layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def plainly_laid_out(parts: Sequence[nn.Module]) -> Iterator[None]:
    """In here the `state_dict` of a part holds copies of weights that are laid out otherwise.

    Joined weights share their memory, which safetensors refuses, or drops as duplicates; the
    weights themselves stay where they are, since graphs read them there.
    """
    with ExitStack() as stack:
        for part in parts:
            handle = part.register_state_dict_post_hook(_copy_unusual)  # type: ignore[no-untyped-call]
            stack.callback(handle.remove)
        yield


def _copy_unusual(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
    for name, value in state.items():
        if isinstance(value, Tensor) and not _is_plain(value):
            # On the host: beside a full device there may be no room for a second UNet.
            state[name] = value.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)


def _is_plain(value: Tensor) -> bool:
    whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
    return whole and value.is_contiguous()
