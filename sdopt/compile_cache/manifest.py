"""What a packed file says of itself, before anything else of it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sdopt.errors import BrokenFileError
from sdopt.util.text import shown

SCHEMA = 1
MANIFEST = "manifest.json"
MOST_UNPACKED_BYTES = 2**32
MOST_PART_BYTES, MOST_NAME_BYTES = 240, 1000
"""Of one part of a path, and of all: file systems take 255, and 4096 with the folder."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a packed file is of (`identity.made_here`), and the SHA-256 and bytes of its files."""

    made_for: dict[str, str]
    levels: tuple[str, ...]
    source: str
    files: dict[str, tuple[str, int]]

    @property
    def unpacked_bytes(self) -> int:
        """The size of all files together."""
        return sum(size for _, size in self.files.values())

    @property
    def digest(self) -> str:
        """A name for exactly these contents."""
        return hashlib.sha256(self.as_json()).hexdigest()[:20]

    def as_json(self) -> bytes:
        """The first member of the file."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, sort_keys=True).encode()


def parse(file: Path, content: bytes) -> Manifest:
    """Raises BrokenFileError for one that is none, or names what could not be unpacked."""
    try:
        data = json.loads(content)
        if data["schema"] != SCHEMA:
            told = shown(repr(data["schema"]), 60)
            raise BrokenFileError(f"compile cache {file} is of schema {told}, this is {SCHEMA}")
        found = _checked(data)
    except BrokenFileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = shown(repr(error), 200)
        raise BrokenFileError(f"compile cache {file} has a broken manifest ({what})") from error
    if problem := _problem(found):
        raise BrokenFileError(f"compile cache {file} has a manifest that names {problem}")
    return found


def name_problem(name: str) -> str | None:
    """Why a file of that name could not be unpacked everywhere."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\\" in name:
        return "leads out of its folder"
    if not name.isprintable() or "/".join(parts) != name or not parts:
        return "is no plain path"
    if max(len(one.encode()) for one in parts) > MOST_PART_BYTES or (
        len(name.encode()) > MOST_NAME_BYTES
    ):
        return "is longer than a file system takes"
    if name == MANIFEST:
        return "is the manifest's own name"
    return None


def _checked(data: Mapping[str, Any]) -> Manifest:
    """Raises ValueError or TypeError for what has another form."""
    files = {name: (digest, size) for name, (digest, size) in data["files"].items()}
    for digest, size in files.values():
        if not isinstance(digest, str) or type(size) is not int or size < 0:
            raise ValueError("files has no SHA-256 and bytes of each")
    found = Manifest(
        made_for=dict(data["made_for"]),
        levels=tuple(data["levels"]),
        source=data["source"],
        files=files,
    )
    if not _is_plain([*found.made_for, *found.made_for.values(), *found.levels, found.source]):
        raise ValueError("made_for, levels or source is no plain text")
    return found


def _is_plain(texts: Iterable[Any]) -> bool:
    return all(isinstance(one, str) and one.isprintable() for one in texts)


def _problem(manifest: Manifest) -> str | None:
    if manifest.unpacked_bytes > MOST_UNPACKED_BYTES:
        return f"{manifest.unpacked_bytes} bytes, of {MOST_UNPACKED_BYTES} at most"
    for name in manifest.files:
        if problem := name_problem(name):
            return f"{shown(repr(name), 80)}, which {problem}"
        folders = (str(one) for one in PurePosixPath(name).parents)
        if inside := next((one for one in folders if one in manifest.files), None):
            return f"{inside!r} as a file and as the folder of {name!r}"
    return None
