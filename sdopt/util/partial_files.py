"""Files on their way: their writers hold a lock, so that what a killed one left is told apart."""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SUFFIX = ".partial"


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold an existing file's lock, which the kernel lets go however the process ends."""
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_held(path: Path) -> bool:
    """Whether a living process holds the file's lock."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def remove_stale(paths: Iterable[Path]) -> list[Path]:
    """Remove those of these partial files whose writers are gone; what was removed."""
    removed = []
    for path in sorted(paths):
        with suppress(FileNotFoundError):  # its writer has just ended
            if path.is_file() and not is_held(path):
                path.unlink()
                removed.append(path)
    return removed
