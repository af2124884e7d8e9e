"""The packed file: a tar.xz whose first member says what it is of and what has to be in it."""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdopt.compile_cache.manifest import MANIFEST, SCHEMA, Manifest, name_problem, parse
from sdopt.errors import BrokenFileError, SdoptError
from sdopt.util.files import cause, check_plain, write_whole

__all__ = ["MANIFEST", "SCHEMA", "Manifest", "entry", "is_packed", "pack", "read", "refuse_another"]

MOST_MANIFEST_BYTES = 2**24
HEADER_BYTES = 16 * 2**10
"""Of a member of a tar, with what fills up its blocks, and of a whole one's end."""
BLOCK_BYTES = 2**20


def entry(content: bytes) -> tuple[str, int]:
    """What a manifest holds of a file."""
    return hashlib.sha256(content).hexdigest(), len(content)


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
        files={name: entry(content) for name, content in contents.items()},
    )
    buffer = io.BytesIO()
    with lzma.open(buffer, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in {MANIFEST: manifest.as_json(), **contents}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    write_whole(file, buffer.getvalue())
    return manifest


def read(file: Path) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and the contents of a packed file, each found to be what the manifest says.

    No more is unpacked than the manifest says, which comes first. Raises BrokenFileError for a file
    that is missing, truncated, changed, or has members that no packed file has.
    """
    contents: dict[str, bytes] = {}
    try:
        with _opened(file) as (stream, tar):
            first = tar.next()
            if first is None or first.name != MANIFEST:
                raise _broken(file, f"does not begin with {MANIFEST}: it is something else")
            if first.size > MOST_MANIFEST_BYTES:
                raise _broken(file, f"has a manifest of {first.size} bytes")
            manifest = parse(file, _content(tar, first))
            stream.most = _tar_bytes(first.size, manifest)
            for member in tar:
                if member is first:
                    continue
                if problem := _problem(member, manifest, contents):
                    raise _broken(file, f"holds {problem}")
                contents[member.name] = _content(tar, member)
            stream.drain()  # tar stops at its own end; the last checksum of xz stands behind it
    except FileNotFoundError as error:
        raise BrokenFileError(f"compile cache {file} does not exist") from error
    except SdoptError:
        raise
    except OSError as error:
        raise _broken(file, f"cannot be read ({cause(error)})") from error
    except (EOFError, tarfile.TarError, lzma.LZMAError, ValueError, OverflowError) as error:
        raise _broken(file, f"is truncated or no tar.xz file ({error})") from error
    for name, content in contents.items():
        if entry(content) != manifest.files[name]:
            raise _broken(file, f"holds another {name!r} than its manifest says")
    if missing := manifest.files.keys() - contents.keys():
        raise _broken(file, f"lacks {len(missing)} of its files, {min(missing)} among them")
    return manifest, contents


class _Bounded:
    """What an xz file holds, of which no more than `most` bytes are read."""

    def __init__(self, file: lzma.LZMAFile, most: int) -> None:
        self.file, self.most, self.done = file, most, 0

    def read(self, size: int) -> bytes:
        """As a file's. Raises TarError behind the bound."""
        content = self.file.read(size)
        self.done += len(content)
        if self.done > self.most:
            raise tarfile.ReadError("it holds more than its manifest says")
        return content

    def drain(self) -> None:
        """Read to the end."""
        while self.read(BLOCK_BYTES):
            pass


@contextmanager
def _opened(file: Path) -> Iterator[tuple[_Bounded, tarfile.TarFile]]:
    """The content of a packed file as a tar, read once from its begin to its end."""
    check_plain(file)
    with lzma.open(file) as whole:
        stream = _Bounded(whole, MOST_MANIFEST_BYTES + HEADER_BYTES)
        source: Any = stream  # of a file, reading is all that is needed
        with tarfile.open(fileobj=source, mode="r|") as tar:
            yield stream, tar


def _tar_bytes(manifest_bytes: int, manifest: Manifest) -> int:
    """The most that a tar of these files takes: their headers, and what fills up its blocks."""
    return manifest_bytes + manifest.unpacked_bytes + HEADER_BYTES * (2 + len(manifest.files))


def _problem(
    member: tarfile.TarInfo, manifest: Manifest, before: Mapping[str, bytes]
) -> str | None:
    """Why that member has no place in a packed file; what its content is comes later."""
    name = member.name
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        return f"{name!r}, which is a link, a device or a folder"
    if problem := name_problem(name):
        return f"{name!r}, which {problem}"
    if name in before or name not in manifest.files:
        return f"{name!r}, which its manifest does not name (again)"
    if member.size != manifest.files[name][1]:
        return f"another {name!r} than its manifest says"
    return None


def refuse_another(file: Path) -> None:
    """Raise SdoptError for a folder, or a file that is no compile cache: it would be replaced."""
    if file.is_dir():
        raise SdoptError(f"{file} is a folder; name a file in it")
    if file.exists() and file.stat().st_size and not is_packed(file):
        raise SdoptError(
            f"{file} is no compile cache, not even a damaged one, and would be replaced; name "
            "another file, or delete it"
        )


def is_packed(file: Path) -> bool:
    """Whether a file, whole or damaged, begins as `pack` writes it; what does not is another's."""
    try:
        with _opened(file) as (_, tar):
            first = tar.next()
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, ValueError, OverflowError):
        return False
    return first is not None and first.name == MANIFEST


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member) if member.isreg() else None
    return stream.read() if stream else b""


def _broken(file: Path, what: str) -> BrokenFileError:
    return BrokenFileError(f"compile cache {file} {what}")
