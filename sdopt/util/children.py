"""How a process that this package starts finds it again."""

from __future__ import annotations

import os
from pathlib import Path

OWN_TREE = Path(__file__).resolve().parents[2]


def python_path(tree: Path = OWN_TREE) -> str:
    """PYTHONPATH for a child: `tree` first, then what this process was given."""
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(tree), *filter(None, [inherited])])
