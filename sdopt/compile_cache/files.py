"""Which files of a compile folder are worth keeping, and what makes them portable.

Triton's group files name their members by absolute paths: in another folder they miss, or read what
the old folder holds. So they are packed with names, and get the paths of the new folder there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

TRITON, INDUCTOR = "triton", "inductor"
"""The folders of the two compilers in a compile folder."""
GROUP_PREFIX = "__grp__"
UNUSED_SUFFIXES = (".source", ".ttir", ".ttgir", ".llir", ".ptx", ".sass")
"""Triton's ways to a binary. It loads what its group names, and needs metadata and binary."""
PASSING_SUFFIXES = (".lock", ".tmp", ".partial", ".o", ".pyc")
PASSING_FOLDERS = ("locks", "__pycache__", "sdopt-ab")


def kept(folder: Path) -> dict[str, bytes]:
    """The portable contents of a compile folder, by path within it, sorted.

    A file that goes away meanwhile was a temporary one.
    """
    contents = {}
    for path in sorted(_walk(folder)):
        try:
            contents[path.relative_to(folder).as_posix()] = portable(path)
        except FileNotFoundError:
            continue
    return contents


def portable(path: Path) -> bytes:
    """The content of a file, without the folder it lies in."""
    content = path.read_bytes()
    if not is_group(path.name):
        return content
    members = _members(content)
    here = {name for name in members if _is_kept(path.with_name(name))}
    return _group({name: name for name in sorted(here)}) if members else content


def local(content: bytes, path: Path) -> bytes:
    """The portable content of a file as it has to be at `path`, an absolute one."""
    if not is_group(path.name):
        return content
    members = _members(content)
    return _group({name: str(path.with_name(name)) for name in members}) if members else content


def is_group(name: str) -> bool:
    """Whether a file of that name says which files belong together."""
    return name.startswith(GROUP_PREFIX) and name.endswith(".json")


def _walk(folder: Path) -> Iterator[Path]:
    for compiler in (TRITON, INDUCTOR):
        for where, folders, names in os.walk(folder / compiler):
            folders[:] = [name for name in folders if _is_lasting(name)]
            paths = (Path(where, name) for name in names)
            yield from (path for path in paths if _is_kept(path) and not path.is_symlink())


def _is_lasting(folder: str) -> bool:
    return folder not in PASSING_FOLDERS and not folder.startswith("tmp.")


def _is_kept(path: Path) -> bool:
    """Its name alone decides: a group keeps the members that are kept."""
    in_triton = path.parent.parent.name == TRITON
    unused = in_triton and path.suffix in UNUSED_SUFFIXES
    return not unused and path.suffix not in PASSING_SUFFIXES and ".tmp." not in path.name


def _members(content: bytes) -> dict[str, str]:
    """Path by name; empty if this is no group that Triton could read."""
    try:
        members = json.loads(content)["child_paths"]
        return {str(name): str(path) for name, path in members.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _group(members: dict[str, str]) -> bytes:
    return json.dumps({"child_paths": members}).encode()
