"""Files that are written whole or not at all, and read with a named error."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdopt.errors import BrokenFileError
from sdopt.util.git import is_tracked
from sdopt.util.whole_file import write_whole as write_whole

HALF = re.compile(r"\\u[dD][89a-fA-F]")
MOST_BYTES = 2**28
"""Of a JSON file: far more than any run has."""


def cause(error: BaseException) -> str:
    """What an error says, without its number and the file's name: its reader has named that."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return re.sub(r" ?<\S*BytesIO object at \w+>", "", str(error))


def damaged(path: Path, what: str) -> BrokenFileError:
    """The error of a stored file that is not what was stored, with the next step."""
    error = BrokenFileError(f"{path} {what}{_from_git(path)}")
    error.path = path
    return error


def _from_git(path: Path) -> str:
    if is_tracked(path):
        return f"; it was left as it is; git checkout -- {path} brings back what git has"
    return "; it was left as it is; remove it, or put a sound one there"


@contextmanager
def given(path: Path, instead: str) -> Iterator[None]:
    """Name what to give `instead` of a file that is somebody's own: git may have none of it."""
    try:
        yield
    except BrokenFileError as error:
        told = str(error)
        hint = _from_git(path)
        if hint not in told and told != _missing(path):
            raise
        raise BrokenFileError(f"{told.replace(hint, '')}; {instead}") from error


def _missing(path: Path) -> str:
    return f"{path} is missing"


def check_plain(path: Path) -> None:
    """Raise OSError for what is no plain file: a pipe waits for a writer, a device has no end."""
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no plain file", str(path))


def read_plain(path: Path, most_bytes: int) -> bytes:
    """The content of a plain file; raises OSError for a device, a pipe, and for what is larger.

    `check_plain` says why those are not opened.
    """
    check_plain(path)
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {most_bytes >> 20} MiB", str(path))
    return content


def is_whole(text: str) -> bool:
    """Whether it can be written: JSON and arguments may hold half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def may_be_path(text: str) -> bool:
    """Whether a file could have that name; to ask for any other one raises an error."""
    parts = text.encode("utf-8", "surrogateescape") if is_whole(_without_escapes(text)) else b"\0"
    return b"\0" not in parts and len(parts) < 4096 and max(map(len, parts.split(b"/"))) < 256


def _without_escapes(text: str) -> str:
    """Without what stands for bytes of names that are no UTF-8."""
    return re.sub("[\udc80-\udcff]", "", text)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises BrokenFileError if it is missing, broken or no object."""
    try:
        text = read_plain(path, MOST_BYTES).decode("utf-8")
        data = json.loads(text)
    except FileNotFoundError as error:
        raise BrokenFileError(_missing(path)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"cannot be read: {cause(error)}") from error
    if not isinstance(data, dict):
        raise damaged(path, "holds no JSON object")
    if HALF.search(text) and not is_whole(json.dumps(data, ensure_ascii=False)):
        raise damaged(path, "holds half a character, which no text can")
    return data
