"""Where an evaluation's files lie: a folder, or object storage through fsspec; whole files only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from sdopt.errors import BrokenFileError, MissingToolError, SdoptError
from sdopt.util.files import cause, write_whole
from sdopt.util.partial_files import SUFFIX, remove_stale


class Place(Protocol):
    """Files by name below one place; all processes of a run see the same."""

    name: str
    lock: Path | None
    """The file that a launch locks; None where there are no locks."""
    shared: bool
    """Whether other processes can see it at all."""

    def write(self, file: str, content: bytes) -> None:
        """Write a file whole or not at all."""

    def open(self, file: str) -> BinaryIO:
        """The file, for reading pieces of it. Raises BrokenFileError if it is not there."""

    def files(self, folder: str) -> list[str]:
        """The names in that folder, in order; none if it is not there."""

    def tidy(self, folder: str) -> None:
        """Remove what killed writers left half done there."""


class Folder:
    """A folder of this machine, or one that several machines share."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self.lock: Path | None = path / ".lock"
        self.shared = True

    def write(self, file: str, content: bytes) -> None:
        """A temporary name beside it, then a rename."""
        try:
            write_whole(self.path / file, content)
        except OSError as error:
            raise cannot_write(f"{self.path / file}", error) from error

    def open(self, file: str) -> BinaryIO:
        """As of Place."""
        try:
            return (self.path / file).open("rb")
        except OSError as error:
            raise BrokenFileError(f"{self.path / file} cannot be read: {cause(error)}") from error

    def files(self, folder: str) -> list[str]:
        """As of Place; files that are being written have no name yet."""
        place = self.path / folder
        names = (path.name for path in place.iterdir()) if place.is_dir() else iter(())
        return sorted(name for name in names if not name.endswith(SUFFIX))

    def tidy(self, folder: str) -> None:
        """As of Place."""
        remove_stale((self.path / folder).glob(f"*{SUFFIX}"))


class Bucket:
    """Object storage, where an upload is whole or not there: s3://, gs://, hf://, memory://."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.name = url
        self.lock: Path | None = None
        try:
            self.system, self.root = cast(tuple[Any, str], url_to_fs(url))
        except ImportError as error:
            raise MissingToolError(f"--out {url}: {error}; install it with pip") from error
        except ValueError as error:
            raise SdoptError(f"--out {url}: {error}; give a folder or a URL of fsspec") from error
        self.shared = not _in_memory(self.system)

    def write(self, file: str, content: bytes) -> None:
        """One upload."""
        try:
            self.system.makedirs(f"{self.root}/{file}".rpartition("/")[0], exist_ok=True)
            self.system.pipe_file(f"{self.root}/{file}", content)
        except OSError as error:
            raise cannot_write(f"{self.name}/{file}", error) from error

    def open(self, file: str) -> BinaryIO:
        """As of Place."""
        try:
            return cast(BinaryIO, self.system.open(f"{self.root}/{file}", "rb"))
        except OSError as error:
            raise BrokenFileError(f"{self.name}/{file} cannot be read: {cause(error)}") from error

    def files(self, folder: str) -> list[str]:
        """As of Place; asks the storage each time."""
        place = f"{self.root}/{folder}".rstrip("/")
        self.system.invalidate_cache()
        if not self.system.exists(place):
            return []
        return sorted(str(name).rpartition("/")[2] for name in self.system.ls(place, detail=False))

    def tidy(self, folder: str) -> None:
        """Nothing: half an upload is no file."""


def _in_memory(system: Any) -> bool:
    """Whether it, or what it wraps (`simplecache::memory://`), is of one process alone."""
    names = system.protocol if isinstance(system.protocol, tuple) else (system.protocol,)
    below = getattr(system, "fs", None)
    return "memory" in names or (below is not None and _in_memory(below))


def place_of(out: str) -> Place:
    """A folder, or what a URL names. Raises SdoptError for neither."""
    if not out.strip():
        raise SdoptError("--out is empty (an unset variable?); name a folder, such as quality/")
    if "://" in out:
        return Bucket(out.rstrip("/"))
    for path in (Path(out), *Path(out).parents):
        if path.exists() and not path.is_dir():
            raise SdoptError(f"--out {out}: {path} is a file; name a folder")
    return Folder(Path(out))


def cannot_write(file: str, error: OSError) -> SdoptError:
    """Such as of a full disk: what was written before is whole, and stays."""
    return SdoptError(
        f"{file} cannot be written: {cause(error)}; make room there and run the same command "
        "again: it goes on where it stopped"
    )
