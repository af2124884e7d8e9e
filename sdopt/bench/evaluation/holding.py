"""One launch at a time in a place: its main process holds a lock there until it has merged."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from sdopt.bench.evaluation.places import Place, cannot_write
from sdopt.errors import BusyError
from sdopt.util.files import write_whole

HOLDER = "holder.json"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system without locks answers, such as Lustre mounted without `flock`."""


@contextmanager
def held(place: Place, say: Callable[[str], None]) -> Iterator[None]:
    """Hold it against all other launches, on other machines too. Raises BusyError naming the other.

    The kernel lets go of the lock however the process ends. Where there are no locks that is said,
    and nothing is refused.
    """
    if place.lock is None or not _locked(lock := FileLock(place.lock, timeout=0), place.lock):
        say(f"{place.name} has no locks: do not start a second evaluation in it meanwhile")
        yield
        return
    holder = place.lock.parent / HOLDER
    try:
        _sign(holder)
        yield
    finally:
        with suppress(OSError):  # a folder that can be read and not written ends as it would
            holder.unlink(missing_ok=True)
        lock.release()


def _locked(lock: FileLock, path: Path) -> bool:
    """False where there are no locks. Raises BusyError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise BusyError(
            f"{path.parent} is in use by another evaluation, {_holder(path.parent / HOLDER)}; wait "
            "until it has ended, or name another --out"
        ) from error
    except NotImplementedError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise cannot_write(str(path), error) from error
    return True


def _sign(holder: Path) -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    told = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
    try:
        write_whole(holder, json.dumps(told).encode() + b"\n")
    except OSError as error:
        raise cannot_write(str(holder), error) from error


def _holder(file: Path) -> str:
    """'process 12 on node-3, since 2026-11-29T12:00:00+00:00'."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        return f"process {told['pid']} on {told['host']}, since {told['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "which has only begun"
