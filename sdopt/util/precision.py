"""What images are computed in: float16 on a GPU, float32 on the CPU, or bfloat16 if asked for."""

from __future__ import annotations

import os

from sdopt.errors import UnknownNameError

DTYPE = "SDOPT_DTYPE"
"""Environment variable: the dtype of every level that is not asked for another one."""
BFLOAT16 = "bfloat16"
USUAL = {"cuda": "float16", "cpu": "float32"}
NAMES = (*USUAL.values(), BFLOAT16)
SET_SUFFIXES = ("-float16", "-bfloat16")
"""Of baseline sets whose images differ from those of the source's usual dtype."""
WHY = "bfloat16 is for weights that overflow in float16, and has an eighth of its precision"


def usual_dtype(device_type: str) -> str:
    """What that kind of device computes in unless something else is asked for."""
    return USUAL.get(device_type, USUAL["cpu"])


def dtype_choices(device_type: str) -> tuple[str, ...]:
    """What that kind of device can compute in; the usual one first."""
    return usual_dtype(device_type), BFLOAT16


def chosen_dtype(device_type: str, given: object = None) -> str:
    """The name of the dtype: the given one's, else what $SDOPT_DTYPE says, else the usual one.

    `given` may be a torch.dtype. Raises UnknownNameError for one that the device does not offer.
    """
    asked = given if given is not None else os.environ.get(DTYPE) or usual_dtype(device_type)
    name = str(asked).removeprefix("torch.")
    if name not in (choices := dtype_choices(device_type)):
        raise UnknownNameError(f"dtype of a {device_type} device", name, choices, WHY)
    return name


def without_dtype(rest: str) -> str:
    """What follows a source's name in that of a baseline set, without the dtype."""
    for suffix in SET_SUFFIXES:
        rest = rest.removeprefix(suffix)
    return rest
