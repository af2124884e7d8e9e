"""What runs that were killed left below the baselines: completed, removed, or named."""

from __future__ import annotations

from pathlib import Path

from sdopt.bench.stored.accepting import recover
from sdopt.util.partial_files import SUFFIX, remove_stale
from sdopt.util.text import counted


def tidy(root: Path) -> list[str]:
    """Remove files that were on their way and complete accepts that had begun, and say so."""
    lines = []
    if removed := remove_stale(root.rglob(f"*{SUFFIX}")):
        lines.append(
            f"sdopt: removed {counted(len(removed), 'partial file')} of a run that was killed, in "
            f"{', '.join(sorted({str(path.parent) for path in removed}))}"
        )
    found = recover(root)
    return [
        *lines,
        *(f"sdopt: completed an accept that was killed: {path}" for path in found.completed),
        *(
            f"sdopt: undid the rest of an accept whose old files were brought back: {path}"
            for path in found.undone
        ),
        *(
            f"sdopt: an interrupted accept left images and latents partly new: {path}"
            for path in found.left
        ),
    ]
