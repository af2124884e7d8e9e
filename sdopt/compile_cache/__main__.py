"""Pack, check and unpack compiled code: `python -m sdopt.compile_cache pack|check|unpack FILE`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sdopt.compile_cache import archive, files, place
from sdopt.compile_cache.identity import made_here
from sdopt.errors import SdoptError, WorkerError
from sdopt.levels import get_level
from sdopt.util.children import python_path
from sdopt.weights.sources import resolve

LEVELS = ("turbo",)
DRAWING = "sdopt.compile_cache.drawing"


def pack(file: Path, levels: Sequence[str], source: str | None) -> list[str]:
    """Compile the levels in a fresh process and folder, and pack what that left; what to say."""
    names = [get_level(level).name for level in levels]
    resolved = resolve(source).name
    _refuse_unwritable(file)
    with tempfile.TemporaryDirectory(prefix="sdopt-compile-") as name:
        start = time.perf_counter()
        _draw(Path(name), source or "auto", names)
        seconds = time.perf_counter() - start
        contents = files.kept(Path(name))
    if not contents:
        raise SdoptError(
            f"{', '.join(names)} compile nothing here, so there is nothing to pack; "
            "choose --levels that do: compiled ones, or on a GPU those of the engine"
        )
    manifest = archive.pack(file, contents, made_for=made_here(), levels=names, source=resolved)
    return [f"compiled and drawn in {seconds:.1f} s by a process of its own", *told(file, manifest)]


def check(file: Path) -> list[str]:
    """Whether the file is whole and fits this machine; what to say."""
    manifest = archive.read(file, lambda found: place.refuse_misfit(file, found))
    return [*told(file, manifest), "it fits this machine, its versions and its kernels"]


def unpack(file: Path, folder: Path) -> list[str]:
    """Unpack into an empty folder for programs that read the environment; what to say."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SdoptError(f"{folder} is there and no empty folder; name another one")
    manifest = place.unpack(file, folder.absolute())
    exports = (
        f"export {name}={value}" for name, value in place.variables(folder.absolute()).items()
    )
    return [*told(file, manifest), *exports]


def told(file: Path, manifest: archive.Manifest) -> list[str]:
    """Size, number of files and what they are of."""
    of = ", ".join(f"{name} {value}" for name, value in manifest.made_for.items())
    return [
        f"{file}: {file.stat().st_size / 1e6:.2f} MB, {len(manifest.files)} files of "
        f"{manifest.unpacked_bytes / 1e6:.1f} MB",
        f"levels {', '.join(manifest.levels)} of source {manifest.source}",
        of,
    ]


def _draw(folder: Path, source: str, levels: Sequence[str]) -> None:
    done = subprocess.run(
        (sys.executable, "-m", DRAWING, source, *levels),
        env={**os.environ, **place.variables(folder), "PYTHONPATH": python_path()},
    )
    if done.returncode:
        raise WorkerError(
            f"the process that compiles {', '.join(levels)} ended with status {done.returncode}; "
            "it says above why; nothing was packed"
        )


def _refuse_unwritable(file: Path) -> None:
    """Before minutes of compiling rather than after."""
    if file.is_dir():
        raise SdoptError(f"{file} is a folder; name a file in it")
    if file.exists() and file.stat().st_size and not archive.is_packed(file):
        raise SdoptError(f"{file} is there and no compile cache; name another file, or delete it")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise SdoptError(f"{file} cannot be written: {error}; name another file") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one of the three; 2 for a file that does not fit, and for every other mistake."""
    options = _parser().parse_args(arguments)
    try:
        if options.do == "pack":
            lines = pack(options.file, options.levels, options.source)
        elif options.do == "check":
            lines = check(options.file)
        else:
            lines = unpack(options.file, options.folder)
    except (SdoptError, OSError) as error:
        again = f"; next: {place.PACK} FILE --levels LEVEL..." if options.do != "pack" else ""
        print(f"error: {error}{again}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sdopt.compile_cache", description=__doc__)
    commands = parser.add_subparsers(dest="do", required=True)
    parsers = {
        name: commands.add_parser(name, help=help)
        for name, help in (
            ("pack", "compile levels in a process of their own and pack what that left"),
            ("check", "say whether a file is whole and fits this machine: exit code 0 or 2"),
            ("unpack", "unpack into an empty folder and print the environment to use it"),
        )
    }
    for command in parsers.values():
        command.add_argument("file", type=Path, metavar="FILE")
    parsers["pack"].add_argument("--levels", nargs="+", default=LEVELS, metavar="LEVEL")
    parsers["pack"].add_argument("--source", help="weights, as --sdopt-source (auto)")
    parsers["unpack"].add_argument("folder", type=Path, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
