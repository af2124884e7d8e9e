"""What of a GPU decides how the engine reads operands and how its work is cut."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch

from sdopt.util.hardware import pointers_forced

LEAST_CAPABILITY = 80
"""Ampere, whose multiprocessors copy into shared memory beside other work (`cp.async`)."""
HOPPER = 90
"""The only one whose matrix unit is `wgmma`, which reads ordinary registers beside other work."""
DESCRIPTORS = range(HOPPER, 120)
"""With a tensor memory accelerator, and the shared memory that its tiles by rule need.

Consumer cards of Blackwell (12.0) have the accelerator too, but the shared memory of an RTX 4090.
"""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU as far as kernels depend on it.

    `capability` is 90 for 9.0, `shared_bytes` the shared memory that one program may have.
    `pointers` says that products read their operands through pointers, else through descriptors;
    `specialized` that it takes the kernel of three roles (`sdopt.engine.specialized`).
    """

    name: str
    capability: int
    multiprocessors: int
    shared_bytes: int
    pointers: bool
    specialized: bool = False

    @property
    def family(self) -> str:
        """Cards that can run each other's kernels: 'sm_90'; read through pointers, another one."""
        other = self.pointers and self.capability in DESCRIPTORS
        return f"sm_{self.capability}{'-pointers' if other else ''}"

    @property
    def dependent(self) -> bool:
        """Whether kernels are started while the ones before them end (`dependent`)."""
        return self.capability in DESCRIPTORS and not self.pointers

    def __str__(self) -> str:
        reads = "through pointers" if self.pointers else "through descriptors"
        return f"{self.name} ({self.family}, {reads})"

    def through_pointers(self) -> Card:
        """The same card without its accelerator."""
        return replace(self, pointers=True, specialized=False)


A100 = Card(
    name="NVIDIA A100", capability=80, multiprocessors=108, shared_bytes=166_912, pointers=True
)
H100 = Card(
    name="NVIDIA H100",
    capability=90,
    multiprocessors=132,
    shared_bytes=232_448,
    pointers=False,
    specialized=True,
)
KNOWN = {
    "A100": A100,
    "RTX 3090": Card(
        name="NVIDIA GeForce RTX 3090",
        capability=86,
        multiprocessors=82,
        shared_bytes=101_376,
        pointers=True,
    ),
    "A10": Card(
        name="NVIDIA A10", capability=86, multiprocessors=72, shared_bytes=101_376, pointers=True
    ),
    "L4": Card(
        name="NVIDIA L4", capability=89, multiprocessors=58, shared_bytes=101_376, pointers=True
    ),
    "RTX 4090": Card(
        name="NVIDIA GeForce RTX 4090",
        capability=89,
        multiprocessors=128,
        shared_bytes=101_376,
        pointers=True,
    ),
    "H100": H100,
    "H100 through pointers": H100.through_pointers(),
    "B200": Card(
        name="NVIDIA B200",
        capability=100,
        multiprocessors=148,
        shared_bytes=232_448,
        pointers=False,
    ),
    "RTX 5090": Card(
        name="NVIDIA GeForce RTX 5090",
        capability=120,
        multiprocessors=170,
        shared_bytes=101_376,
        pointers=True,
    ),
}
"""Cards that kernels are compiled for without one. Shared memory by NVIDIA's CUDA C++ Programming
Guide, table of compute capabilities, less the 1 KiB that the driver keeps of each program's."""


def card_of(device: torch.device) -> Card:
    """The CUDA device as this process uses it."""
    return _card_of(device, pointers_forced())


def _gluon_compiles() -> bool:
    """Whether there is a Triton whose Gluon compiles the specialized kernels."""
    if find_spec("triton") is None:  # whoever launches a kernel is told so
        return False
    from sdopt.engine import specialized_launch

    return specialized_launch.compiles_here()


@lru_cache
def _card_of(device: torch.device, forced: bool) -> Card:
    found: Any = torch.cuda.get_device_properties(device)
    capability = 10 * found.major + found.minor
    card = Card(
        name=found.name,
        capability=capability,
        multiprocessors=found.multi_processor_count,
        shared_bytes=found.shared_memory_per_block_optin,
        pointers=capability not in DESCRIPTORS,
        specialized=capability == HOPPER and _gluon_compiles(),
    )
    return card.through_pointers() if forced else card
