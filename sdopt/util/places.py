"""Where this user's own files lie."""

from __future__ import annotations

import os
from pathlib import Path

TILES = "SDOPT_TILES"
"""Environment variable: the folder of this user's own tables of tiles."""


def tiles_folder() -> Path:
    """What $SDOPT_TILES names, else a folder of the cache."""
    named = os.environ.get(TILES)
    return Path(named).absolute() if named else cache_root() / "tiles"


def cache_root() -> Path:
    """The folder for what can be made again, by the XDG Base Directory Specification."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "sdopt"
