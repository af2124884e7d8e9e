"""Where this user's own files lie."""

from __future__ import annotations

import os
from pathlib import Path

from sdopt.errors import SdoptError

TILES = "SDOPT_TILES"
"""Environment variable: the folder of this user's own tables of tiles."""


def tiles_folder() -> Path:
    """What $SDOPT_TILES names, else a folder of the cache. Raises SdoptError for a file."""
    named = os.environ.get(TILES)
    folder = Path(named).absolute() if named else cache_root() / "tiles"
    if folder.exists() and not folder.is_dir():
        raise SdoptError(f"tables of tiles lie in a folder, and {folder} is none; set ${TILES}")
    return folder


def cache_root() -> Path:
    """The folder for what can be made again, by the XDG Base Directory Specification."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "sdopt"
