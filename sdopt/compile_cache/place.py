"""Private folders to compile in, and the environment variables that point there."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sdopt.compile_cache import archive, files
from sdopt.compile_cache.identity import made_here, misfit
from sdopt.errors import ForeignCacheError, SdoptError

PACK = "python -m sdopt.compile_cache pack"
FRESH_PREFIX, HALF_PREFIX, DAMAGED_PREFIX = "fresh-", "half-", "damaged-"
UNUSED_DAYS = 14
"""After so long a folder that nobody asked for is removed."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A packed file whose contents lie in a private folder of this user."""

    file: Path
    folder: Path
    manifest: archive.Manifest

    def __str__(self) -> str:
        packed_mb, unpacked_mb = self.file.stat().st_size / 1e6, self.manifest.unpacked_bytes / 1e6
        return (
            f"compile cache {self.file}: {packed_mb:.1f} MB, {len(self.manifest.files)} files of "
            f"{unpacked_mb:.1f} MB, in {self.folder}"
        )


def root() -> Path:
    """Where the private folders are; a folder of the user's, because what lies there runs."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "sdopt" / "compile"


def use(file: Path | str) -> Path:
    """Let this process and its children take compiled code from a packed file; the folder it is in.

    Call it before anything is compiled. Raises ForeignCacheError if the file is of another machine,
    version or kernels, and BrokenFileError if it is missing or damaged.
    """
    try:
        found = placed(Path(file))
    except SdoptError as error:
        raise type(error)(f"{error}; next: {PACK} {file} --levels LEVEL...") from error
    os.environ.update(variables(found.folder))
    return found.folder


def placed(file: Path) -> Placed:
    """The packed file's contents in a folder named after them, which may be there already.

    Raises as `use` does. Two processes may do this at once.
    """
    manifest = archive.read(file, fits=lambda found: refuse_misfit(file, found))
    folder = root() / manifest.digest
    with _alone():
        if not is_intact(folder, manifest):
            _unpack(file, folder)
        os.utime(folder)
        _remove_unused(folder)
    return Placed(file=file, folder=folder, manifest=manifest)


def refuse_misfit(file: Path, manifest: archive.Manifest) -> None:
    """Raise ForeignCacheError if the contents are of something else than what runs here."""
    if found := misfit(manifest.made_for, made_here()):
        raise ForeignCacheError(f"compile cache {file} is {found}")


def is_intact(folder: Path, manifest: archive.Manifest) -> bool:
    """Whether the folder holds every file of the manifest, as it was packed."""
    for name, (digest, _) in manifest.files.items():
        try:
            content = files.portable(folder / name)
        except OSError:
            return False
        if archive.sha256(content) != digest:
            return False
    return folder.is_dir()


def unpack(file: Path, folder: Path, at: Path | None = None) -> archive.Manifest:
    """Unpack into an empty or new folder, for it to be used `at` another place if that is given."""
    place = (at or folder).absolute()

    def put(name: str, content: bytes) -> None:
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files.local(content, place / name))
        except OSError as error:
            raise SdoptError(f"compile cache {file} cannot be unpacked: {error}") from error

    def fits(found: archive.Manifest) -> None:
        refuse_misfit(file, found)
        folder.mkdir(parents=True, exist_ok=True)

    return archive.read(file, fits, put)


def _unpack(file: Path, folder: Path) -> None:
    """Beside the folder first, so that it is there whole or not at all; a damaged one makes way."""
    half, damaged = make_folder(HALF_PREFIX), make_folder(DAMAGED_PREFIX)
    try:
        unpack(file, half, at=folder)
        if folder.exists():
            folder.replace(damaged)
        half.replace(folder)
    except OSError as error:
        raise SdoptError(f"compile cache {file} cannot be unpacked: {error}") from error
    finally:
        for passing in (half, damaged):
            shutil.rmtree(passing, ignore_errors=True)


@contextmanager
def _alone() -> Iterator[None]:
    """While no other process of this user unpacks; released by the system whatever happens."""
    try:
        root().mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = root().with_name("compile.lock").open("w")
    except OSError as error:
        raise SdoptError(
            f"nothing can be unpacked into {root()}: {error}; let $XDG_CACHE_HOME name a folder "
            "that can be written"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_folder(prefix: str = FRESH_PREFIX) -> Path:
    """A new private folder that nobody else has."""
    root().mkdir(parents=True, exist_ok=True, mode=0o700)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=root()))


def _remove_unused(but: Path) -> None:
    oldest = time.time() - UNUSED_DAYS * 86_400
    for folder in but.parent.iterdir():
        with suppress(OSError):  # another process removes the same
            if folder != but and folder.stat().st_mtime < oldest:
                shutil.rmtree(folder)


def variables(folder: Path) -> dict[str, str]:
    """The environment in which everything is compiled into, and taken from, a compile folder.

    Triton's ways to a binary are left out, which its cache keys do not depend on.
    """
    return {
        "TRITON_CACHE_DIR": str(folder / files.TRITON),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / files.INDUCTOR),
        "TRITON_STORE_BINARY_ONLY": "1",
    }


@contextmanager
def pointed_at(folder: Path) -> Iterator[Mapping[str, str]]:
    """Compile there for as long as this lasts; child processes too."""
    before = {name: os.environ.get(name) for name in variables(folder)}
    os.environ.update(variables(folder))
    try:
        yield os.environ
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
