"""What git knows about a file."""

from __future__ import annotations

import subprocess
from pathlib import Path


def is_tracked(path: Path, by: Path = Path()) -> bool:
    """Whether the repository `by` stands in has the file: by default where this process runs.

    `git checkout -- PATH` there brings it back.
    """
    listed = ("--literal-pathspecs", "ls-files", "--error-unmatch", "--", str(path.absolute()))
    try:
        found = subprocess.run(("git", "-C", str(by), *listed), capture_output=True, check=False)
    except OSError:  # there is no git
        return False
    return found.returncode == 0
