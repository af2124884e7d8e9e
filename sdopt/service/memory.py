"""Memory that the front and a worker share: a worker's images come through it, uncopied.

It has no name, so nothing is left behind by a process that was killed.
"""

from __future__ import annotations

import mmap
import os
import tempfile

import numpy as np
from numpy.typing import NDArray


def anonymous_file() -> int:
    """The descriptor of an empty file that ends with the last process that has it open."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("sdopt-images")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Slots:
    """Places for so many images of so many bytes each in the file of a descriptor."""

    def __init__(self, descriptor: int, count: int, slot_bytes: int) -> None:
        os.ftruncate(descriptor, count * slot_bytes)
        self.slot_bytes = slot_bytes
        self.map = mmap.mmap(descriptor, count * slot_bytes)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self.map, dtype=np.uint8)
        self.free = list(range(count))

    def pixels(self, slot: int, height: int, width: int) -> NDArray[np.uint8]:
        """The image in a slot, (height, width, 3): its memory, no copy of it."""
        begin = slot * self.slot_bytes
        return self.bytes[begin : begin + 3 * height * width].reshape(height, width, 3)
