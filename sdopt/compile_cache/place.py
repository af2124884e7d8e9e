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
from sdopt.util.files import cause
from sdopt.util.places import cache_root

PACK = "sdopt cache pack"
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
    return cache_root() / "compile"


def use(file: Path | str) -> Path:
    """Let this process and its children take compiled code from a packed file; the folder it is in.

    Call it before anything is compiled. Raises ForeignCacheError if the file is of another machine,
    version or kernels, and BrokenFileError if it is missing or damaged.
    """
    try:
        found = placed(Path(file))
    except SdoptError as error:
        raise type(error)(f"{error}; next: {PACK} {file} --force --levels LEVEL,...") from error
    os.environ.update(variables(found.folder))
    return found.folder


def placed(file: Path) -> Placed:
    """The packed file's contents in a folder named after them, which may be there already.

    Raises as `use` does. Two processes may do this at once.
    """
    manifest, contents = fitting(file)
    folder = root() / manifest.digest
    try:
        with _alone():
            found = files.kept(folder)
            if not folder.is_dir() or any(found.get(name) != contents[name] for name in contents):
                _unpack(contents, folder)
            os.utime(folder)
            _remove_unused(folder)
    except OSError as error:
        raise SdoptError(
            f"compile cache {file} cannot be unpacked: nothing can be put into {root()} "
            f"({cause(error)}); let $XDG_CACHE_HOME name a folder that can be written and has room"
        ) from error
    return Placed(file=file, folder=folder, manifest=manifest)


def fitting(file: Path) -> tuple[archive.Manifest, dict[str, bytes]]:
    """What the file holds. Raises ForeignCacheError if that is of something else than runs here."""
    manifest, contents = archive.read(file)
    if found := misfit(manifest.made_for, made_here()):
        raise ForeignCacheError(f"compile cache {file} is {found}")
    return manifest, contents


def put(contents: Mapping[str, bytes], folder: Path, at: Path) -> None:
    """Write portable contents into a folder, for it to be used as `at`, an absolute path."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files.local(content, at / name))


def _unpack(contents: Mapping[str, bytes], folder: Path) -> None:
    """Beside the folder first, so that it is there whole or not at all; a damaged one makes way."""
    with tempfile.TemporaryDirectory(prefix="half-", dir=root()) as name:
        new, old = Path(name, "new"), Path(name, "old")
        new.mkdir(mode=0o700)
        put(contents, new, at=folder)
        if folder.exists():
            folder.replace(old)
        new.replace(folder)


@contextmanager
def _alone() -> Iterator[None]:
    """While no other process of this user unpacks; released by the system whatever happens."""
    root().mkdir(parents=True, exist_ok=True, mode=0o700)
    with root().with_name("compile.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_folder() -> Path:
    """A new private folder that nobody else has."""
    root().mkdir(parents=True, exist_ok=True, mode=0o700)
    return Path(tempfile.mkdtemp(prefix="fresh-", dir=root()))


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
