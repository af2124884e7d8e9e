"""`sdopt cache`: compiled code packed into one file that a runner keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sdopt.cli.options import SOURCE_HELP, Force, checked_levels, refuse_existing
from sdopt.cli.progress import progress
from sdopt.errors import SdoptError

File = Annotated[Path, typer.Argument(metavar="FILE", help="The packed file, a .tar.xz.")]


def pack(
    file: File,
    levels: Annotated[
        str, typer.Option("--levels", metavar="LEVEL,...", help="Which to compile.")
    ] = "turbo",
    source: Annotated[str, typer.Option("--source", metavar="NAME", help=SOURCE_HELP)] = "auto",
    force: Force = False,
) -> int:
    """Compile levels in a process of their own and pack what that left."""
    names = checked_levels(levels)
    from sdopt.compile_cache import archive, packing
    from sdopt.weights.sources import may_download, resolve

    if not may_download(source):
        resolve(source)  # before the file: it may be wrong
    archive.refuse_another(file)
    refuse_existing(file, force=force)
    with progress("compiling", None):
        lines = packing.pack(file, names, source)
    print("\n".join(lines))
    return 0


def check(file: File) -> int:
    """Say whether a file is whole and fits this machine."""
    from sdopt.compile_cache import packing

    return _told(lambda: packing.check(file))


def unpack(
    file: File,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An empty folder, or a new one.")],
) -> int:
    """Unpack into an empty folder and print the environment to use it."""
    from sdopt.compile_cache import packing

    packing.refuse_full(folder)
    return _told(lambda: packing.unpack(file, folder))


def _told(do: Callable[[], list[str]]) -> int:
    """What was done, or what is wrong with the file and how to have another one."""
    from sdopt.compile_cache import place

    try:
        lines = do()
    except SdoptError as error:
        raise SdoptError(f"{error}; next: {place.PACK} FILE --force --levels LEVEL,...") from error
    print("\n".join(lines))
    return 0
