"""Which files of a compile folder are worth keeping, and what makes them portable.

Triton's group files name their members by absolute paths: in another folder they miss, or read what
the old folder holds. So they are packed with names, and get the paths of the new folder there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

TRITON, INDUCTOR = "triton", "inductor"
"""The folders of the two compilers in a compile folder."""
UNUSED_SUFFIXES = (".source", ".ttir", ".ttgir", ".llir", ".ptx", ".sass")
"""Triton's ways to a binary. It loads what its group names, and needs metadata and binary."""
PASSING_SUFFIXES = (".lock", ".tmp", ".partial", ".o", ".pyc")
PASSING_FOLDERS = ("locks", "__pycache__", "sdopt-ab")


def kept(folder: Path) -> dict[str, bytes]:
    """The portable contents of a compile folder, by path within it, sorted."""
    contents = {}
    for compiler in (TRITON, INDUCTOR):
        for where, folders, names in os.walk(folder / compiler):
            folders[:] = {name for name in folders if not name.startswith("tmp.")}.difference(
                PASSING_FOLDERS
            )
            for path in (Path(where, name) for name in names):
                if _is_kept(path) and not path.is_symlink():
                    with suppress(FileNotFoundError):  # a temporary one, gone meanwhile
                        contents[path.relative_to(folder).as_posix()] = portable(path)
    return dict(sorted(contents.items()))


def portable(path: Path) -> bytes:
    """The content of a file, without the folder it lies in."""
    return _with_members(
        path, path.read_bytes(), lambda name: name if _is_kept(path.with_name(name)) else None
    )


def local(content: bytes, path: Path) -> bytes:
    """The portable content of a file as it has to be at `path`, an absolute one."""
    return _with_members(path, content, lambda name: str(path.with_name(name)))


def _with_members(path: Path, content: bytes, place: Callable[[str], str | None]) -> bytes:
    """A group file with each member `place` has one for; any other content as it is."""
    if not (path.name.startswith("__grp__") and path.suffix == ".json"):
        return content
    try:
        members = {name: place(name) for name in sorted(json.loads(content)["child_paths"].keys())}
    except (ValueError, KeyError, TypeError, AttributeError):  # Triton could not read it either
        return content
    found = {name: where for name, where in members.items() if where}
    return json.dumps({"child_paths": found}).encode()


def _is_kept(path: Path) -> bool:
    """Its name alone decides: a group keeps the members that are kept."""
    unused = path.parent.parent.name == TRITON and path.suffix in UNUSED_SUFFIXES
    return not unused and path.suffix not in PASSING_SUFFIXES and ".tmp." not in path.name
