"""Which faults there are to measure, and which of them each pair carries."""

from __future__ import annotations

from collections.abc import Sequence

from sdopt.bench.ab.slowdowns import FAULTS, MEMORY_PLACES
from sdopt.errors import SdoptError, UnknownNameError

UNCHANGED = "none"
PLACES = ("loop", "decoder", "host")
SIZES = (0.01, 0.02, 0.03, 0.05, 0.10)
GROUPS = {
    "slowdowns": tuple(f"{place}:{size:g}" for size in SIZES for place in PLACES),
    "memory": ("memory:0.01", "memory:0.02", "memory:0.05", "leak:64"),
}
"""Names for whole sets: slowdowns as shares of an image, held memory as shares of its peak, and
MiB that stay after each image."""


def expanded(names: Sequence[str]) -> list[str]:
    """Each fault once, sets by their faults. Raises SdoptError for what is no fault."""
    faults = dict.fromkeys(fault for name in names for fault in GROUPS.get(name, (name,)))
    for fault in faults:
        place, _, size = fault.partition(":")
        if place not in FAULTS:
            raise UnknownNameError("fault", place, [*FAULTS, *GROUPS])
        try:
            sound = float(size) > 0
        except ValueError:
            sound = False
        if not sound:
            raise SdoptError(f"the fault {fault!r} has no size; write it as in {place}:0.03")
    return list(faults)


def is_of_memory(fault: str) -> bool:
    """Whether it takes memory instead of time."""
    return fault.partition(":")[0] in MEMORY_PLACES


def share(faults: Sequence[str], pair: int, per_pair: int) -> list[str]:
    """The faults of that pair, which counts from 1: each comes up equally often, give or take one.

    After len(faults) pairs each one was up `per_pair` times.
    """
    start = (pair - 1) * per_pair
    return [faults[(start + i) % len(faults)] for i in range(min(per_pair, len(faults)))]
