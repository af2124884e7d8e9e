"""What runs that were killed left below the baselines: removed, or named."""

from __future__ import annotations

from pathlib import Path

from sdopt.bench.stored.accepting import forget_settled
from sdopt.util.partial_files import SUFFIX, remove_stale


def tidy(root: Path) -> list[str]:
    """Remove files that were on their way, and say so; name an interrupted accept."""
    lines = []
    if removed := remove_stale(root.rglob(f"*{SUFFIX}")):
        lines.append(
            f"sdopt: removed {len(removed)} partial files of a run that was killed, in "
            f"{', '.join(sorted({str(path.parent) for path in removed}))}"
        )
    return lines + [
        f"sdopt: an interrupted --sdopt-accept left images and latents partly new: {journal}"
        for journal in forget_settled(root)
    ]
