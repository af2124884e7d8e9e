"""The stages of an image and the moments between them, on the device or on the host."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch

STAGES = ("text", "denoise", "decode")


class Tick(Protocol):
    """A moment between two stages: a CUDA event, or a HostTick."""

    def record(self) -> None:
        """Now, or when the device gets here."""

    def synchronize(self) -> None:
        """Wait until it was recorded."""

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds until `end`."""


class HostTick:
    """A moment by the host's clock."""

    seconds = 0.0

    def record(self) -> None:
        """Now."""
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        """The host is where it is."""

    def elapsed_time(self, end: HostTick) -> float:
        """Milliseconds until `end`."""
        return 1e3 * (end.seconds - self.seconds)


def external_events() -> list[Tick]:
    """Around and between STAGES; external ones can be read after a replay."""
    return [
        torch.cuda.Event(enable_timing=True, external=True)  # type: ignore[no-untyped-call]
        for _ in range(len(STAGES) + 1)
    ]


def tick(marks: Any) -> None:
    """Record the next moment, if there is one more."""
    event = next(marks, None)
    if event is not None:
        event.record()
