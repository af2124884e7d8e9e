"""The packed file: a tar.xz whose first member says what it is of and what has to be in it."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sdopt.errors import BrokenFileError
from sdopt.util.files import write_whole

SCHEMA = 1
MANIFEST = "manifest.json"
MOST_MANIFEST_BYTES = 64 * 2**20


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


def pack(
    file: Path,
    contents: Mapping[str, bytes],
    *,
    made_for: Mapping[str, str],
    levels: Sequence[str],
    source: str,
) -> Manifest:
    """Write the portable contents of a compile folder into one file, whole or not at all.

    The same contents make the same bytes. Raises OSError if the file cannot be written.
    """
    manifest = Manifest(
        made_for=dict(made_for),
        levels=tuple(levels),
        source=source,
        files={name: (sha256(content), len(content)) for name, content in contents.items()},
    )
    buffer = io.BytesIO()
    with lzma.open(buffer, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in {MANIFEST: manifest.as_json(), **contents}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    write_whole(file, buffer.getvalue())
    return manifest


def read(
    file: Path,
    fits: Callable[[Manifest], object] = lambda manifest: None,
    put: Callable[[str, bytes], object] = lambda name, content: None,
) -> Manifest:
    """Read a packed file to its end; each file goes to `put` once its digest was found right.

    `fits` sees the manifest before anything else is read, and may raise. Raises BrokenFileError
    for a file that is missing, truncated, changed, or has members that no packed file has.
    """
    try:
        with lzma.open(file) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            members = iter(tar)
            manifest = _manifest(file, tar, next(members, None))
            fits(manifest)
            missing = dict(manifest.files)
            for name, content in _checked(file, tar, members, missing):
                put(name, content)
            stream.read()  # tar stops at its own end; the last checksum of xz stands behind it
    except FileNotFoundError as error:
        raise BrokenFileError(f"compile cache {file} does not exist") from error
    except OSError as error:
        raise _broken(file, f"cannot be read ({error})") from error
    except (EOFError, tarfile.TarError, lzma.LZMAError) as error:
        raise _broken(file, f"is truncated or no tar.xz file ({error})") from error
    if missing:
        raise _broken(file, f"lacks {len(missing)} of its files, {min(missing)} among them")
    return manifest


def is_packed(file: Path) -> bool:
    """Whether a file, whole or damaged, begins as `pack` writes it; what does not is another's."""
    try:
        with lzma.open(file) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            first = tar.next()
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError):
        return False
    return first is not None and first.name == MANIFEST


def _checked(
    file: Path,
    tar: tarfile.TarFile,
    members: Iterator[tarfile.TarInfo],
    missing: dict[str, tuple[str, int]],
) -> Iterator[tuple[str, bytes]]:
    """Name and content of each member; what came is taken out of `missing`."""
    for member in members:
        _check_member(file, member)
        expected = missing.pop(member.name, None)
        if expected is None:
            raise _broken(file, f"holds {member.name!r}, which its manifest does not name (again)")
        digest, size = expected
        content = _content(tar, member) if member.size == size else b""
        if member.size != size or sha256(content) != digest:
            raise _broken(file, f"holds another {member.name!r} than its manifest says")
        yield member.name, content


def _check_member(file: Path, member: tarfile.TarInfo) -> None:
    """Refuse what could be put anywhere but inside of the folder to unpack to."""
    path = PurePosixPath(member.name)
    if not member.isreg():
        raise _broken(file, f"holds {member.name!r}, which is a link, a device or a folder")
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or not path.parts:
        raise _broken(file, f"holds {member.name!r}, which leads out of its folder")
    if filtered := getattr(tarfile, "data_filter", None):  # Python 3.11.4
        filtered(member, "/nowhere")


def _manifest(file: Path, tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> Manifest:
    if member is None or member.name != MANIFEST or not member.isreg():
        raise _broken(file, f"does not begin with {MANIFEST}: it is something else")
    if member.size > MOST_MANIFEST_BYTES:
        raise _broken(file, f"has a manifest of {member.size} bytes")
    try:
        data = json.loads(_content(tar, member))
        schema = data["schema"]
        if schema == SCHEMA:
            return _parsed(data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(file, f"has a broken manifest ({error!r})") from error
    raise _broken(file, f"is of schema {schema}, this is {SCHEMA}")


def _parsed(data: Mapping[str, Any]) -> Manifest:
    return Manifest(
        made_for={str(name): str(value) for name, value in data["made_for"].items()},
        levels=tuple(str(level) for level in data["levels"]),
        source=str(data["source"]),
        files={str(n): (str(digest), int(size)) for n, (digest, size) in data["files"].items()},
    )


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    return stream.read() if stream else b""


def sha256(content: bytes) -> str:
    """The hexadecimal digest that manifests hold."""
    return hashlib.sha256(content).hexdigest()


def _broken(file: Path, what: str) -> BrokenFileError:
    return BrokenFileError(f"compile cache {file} {what}")
