"""Pack, check and unpack compiled code; each says in lines what was done: `sdopt cache`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdopt.compile_cache import archive, files, place
from sdopt.compile_cache.identity import made_here
from sdopt.errors import SdoptError, WorkerError
from sdopt.levels import get_level
from sdopt.util.children import python_path
from sdopt.util.files import cause
from sdopt.weights.sources import resolve

LEVELS = ("turbo",)
FILLING = "sdopt.compile_cache.filling"


def pack(file: Path, levels: Sequence[str] = LEVELS, source: str | None = None) -> list[str]:
    """Compile the levels in a fresh process and folder, and pack what that left; what to say."""
    names = [get_level(level).name for level in levels]
    resolved = resolve(source).name
    _refuse_unwritable(file)
    _refuse_nothing(names)
    with tempfile.TemporaryDirectory(prefix="sdopt-compile-") as name:
        start = time.perf_counter()
        _fill(Path(name), source or "auto", names)
        seconds = time.perf_counter() - start
        contents = files.kept(Path(name))
    if not contents:
        raise SdoptError(_compile_nothing(names))
    made_for = made_here()
    manifest = archive.pack(file, contents, made_for=made_for, levels=names, source=resolved)
    told_of = told(file, manifest)
    return [f"compiled and generated in {seconds:.1f} s by a process of its own", *told_of]


def check(file: Path) -> list[str]:
    """Whether the file is whole and fits this machine; what to say."""
    manifest, _ = place.fitting(file)
    return [*told(file, manifest), "it fits this machine, its versions and its kernels"]


def unpack(file: Path, folder: Path) -> list[str]:
    """Unpack into an empty folder for programs that read the environment; what to say."""
    refuse_full(folder)
    folder = folder.absolute()
    manifest, contents = place.fitting(file)
    _put(contents, folder)
    exports = (f"export {name}={value}" for name, value in place.variables(folder).items())
    return [*told(file, manifest), *exports]


def _put(contents: Mapping[str, bytes], folder: Path) -> None:
    """All of them, or nothing of them."""
    was_there = folder.exists()
    try:
        place.put(contents, folder, at=folder)
    except BaseException:
        for path in [*folder.iterdir()] if folder.is_dir() else []:
            shutil.rmtree(path)
        if not was_there and folder.is_dir():
            folder.rmdir()
        raise


def _refuse_nothing(names: Sequence[str]) -> None:
    """Before the levels are loaded, for what is known to leave no code on this device."""
    import torch

    on_gpu = torch.cuda.is_available()
    if not any(get_level(one).compiled or (on_gpu and get_level(one).fused) for one in names):
        raise SdoptError(_compile_nothing(names))


def _compile_nothing(names: Sequence[str]) -> str:
    verb = "compiles" if len(names) == 1 else "compile"
    return (
        f"{', '.join(names)} {verb} nothing here, so there is nothing to pack; choose --levels "
        "that do: compiled ones, or on a GPU those of the engine"
    )


def refuse_full(folder: Path) -> None:
    """Raise SdoptError for anything but an empty folder, or a new one."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SdoptError(f"{folder} is there and no empty folder; name another one")


def told(file: Path, manifest: archive.Manifest) -> list[str]:
    """Size, number of files and what they are of."""
    of = ", ".join(f"{name} {value}" for name, value in manifest.made_for.items())
    return [
        f"{file}: {file.stat().st_size / 1e6:.2f} MB, {len(manifest.files)} files of "
        f"{manifest.unpacked_bytes / 1e6:.1f} MB",
        f"levels {', '.join(manifest.levels)} of source {manifest.source}",
        of,
    ]


def _fill(folder: Path, source: str, levels: Sequence[str]) -> None:
    done = subprocess.run(
        (sys.executable, "-m", FILLING, source, *levels),
        env={**os.environ, **place.variables(folder), "PYTHONPATH": python_path()},
    )
    if done.returncode:
        raise WorkerError(
            f"the process that compiles {', '.join(levels)} ended with status {done.returncode}; "
            "it says above why; nothing was packed"
        )


def _refuse_unwritable(file: Path) -> None:
    """Before minutes of compiling rather than after."""
    archive.refuse_another(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise SdoptError(f"{file} cannot be written: {cause(error)}; name another file") from error
