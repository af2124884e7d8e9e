"""The packed file: a tar.xz whose first member says what it is of and what has to be in it."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from sdopt.errors import BrokenFileError, SdoptError
from sdopt.util.files import cause, write_whole

SCHEMA = 1
MANIFEST = "manifest.json"


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

    Raises BrokenFileError for a file that is missing, truncated, changed, or has members that no
    packed file has.
    """
    try:
        with lzma.open(file) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            members = [(member, _content(tar, member)) for member in tar]
            stream.read()  # tar stops at its own end; the last checksum of xz stands behind it
    except FileNotFoundError as error:
        raise BrokenFileError(f"compile cache {file} does not exist") from error
    except OSError as error:
        raise _broken(file, f"cannot be read ({cause(error)})") from error
    except (EOFError, tarfile.TarError, lzma.LZMAError) as error:
        raise _broken(file, f"is truncated or no tar.xz file ({error})") from error
    if not members or members[0][0].name != MANIFEST:
        raise _broken(file, f"does not begin with {MANIFEST}: it is something else")
    manifest = _manifest(file, members[0][1])
    contents: dict[str, bytes] = {}
    for member, content in members[1:]:
        if problem := _problem(member, content, manifest, contents):
            raise _broken(file, f"holds {problem}")
        contents[member.name] = content
    if missing := manifest.files.keys() - contents.keys():
        raise _broken(file, f"lacks {len(missing)} of its files, {min(missing)} among them")
    return manifest, contents


def _problem(
    member: tarfile.TarInfo, content: bytes, manifest: Manifest, before: Mapping[str, bytes]
) -> str | None:
    """Why that member has no place in a packed file; of one that has, name and content count."""
    name = member.name
    if not member.isreg():
        return f"{name!r}, which is a link, a device or a folder"
    if name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name:
        return f"{name!r}, which leads out of its folder"
    if name in before or name not in manifest.files:
        return f"{name!r}, which its manifest does not name (again)"
    if entry(content) != manifest.files[name]:
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
        with lzma.open(file) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            first = tar.next()
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError):
        return False
    return first is not None and first.name == MANIFEST


def _manifest(file: Path, content: bytes) -> Manifest:
    try:
        data = json.loads(content)
        schema = data["schema"]
        if schema == SCHEMA:
            return Manifest(
                made_for=dict(data["made_for"]),
                levels=tuple(data["levels"]),
                source=str(data["source"]),
                files={name: (digest, size) for name, (digest, size) in data["files"].items()},
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(file, f"has a broken manifest ({error!r})") from error
    raise _broken(file, f"is of schema {schema}, this is {SCHEMA}")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member) if member.isreg() else None
    return stream.read() if stream else b""


def _broken(file: Path, what: str) -> BrokenFileError:
    return BrokenFileError(f"compile cache {file} {what}")
