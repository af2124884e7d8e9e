"""Names that older stored files have, and what stands for them now.

What was stored stays as it is: files are read with these names and written with those of today.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "ssim_truth": "ssim_ground_truth",
    "psnr_truth_db": "psnr_ground_truth_db",
    "truth": "ground_truth",
    "drawn_steps": "generated_steps",
}
"""Old name of a metric, a kind of limit or a field, and today's."""


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values; where both names are there, today's counts."""
    old = {RENAMED[name]: value for name, value in values.items() if name in RENAMED}
    return old | {name: value for name, value in values.items() if name not in RENAMED}
