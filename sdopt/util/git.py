"""What git knows about a file."""

from __future__ import annotations

import subprocess
from pathlib import Path


def is_tracked(path: Path, folder: Path = Path()) -> bool:
    """Whether git has the file, asked in that folder: by default where this process runs.

    There `git checkout -- PATH` brings it back.
    """
    listed = ("--literal-pathspecs", "ls-files", "--error-unmatch", "--", str(path.absolute()))
    try:
        found = subprocess.run(
            ("git", "-C", str(folder), *listed), capture_output=True, check=False
        )
    except OSError:  # there is no git
        return False
    return found.returncode == 0
