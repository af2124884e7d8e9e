"""One writer at a time: a lock file in a folder, which is let go however a process ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sdopt.errors import BusyError, SdoptError
from sdopt.util.files import cause

LOCK = ".lock"
PATIENCE_S = 120.0
"""A writer holds a folder for less than a second; whoever waits longer waits for something else."""


@contextmanager
def writing(folder: Path, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold a folder, which is made if it is not there, against all other writers.

    Raises BusyError after `patience_s`, and SdoptError for a folder that cannot be written. Nobody
    may hold the same folder twice.
    """
    path = folder / LOCK
    lock = FileLock(path, timeout=patience_s, poll_interval=0.01)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise BusyError(
            f"another process writes into {folder} (it holds {path}); try again when it has ended"
        ) from error
    except OSError as error:
        raise SdoptError(
            f"{folder} cannot be written: {cause(error)}; make it writable, or name another folder"
        ) from error
    try:
        yield
    finally:
        # While it is held: whoever waits for the file sees that it is gone, and makes a new one.
        path.unlink(missing_ok=True)
        lock.release()
