"""Where this user's own files lie."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """The folder for what can be made again, by the XDG Base Directory Specification."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "sdopt"
