"""`sdopt cache`: compiled code packed into one file that a runner keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from sdopt.cli.options import SOURCE_HELP, Force, Json, checked_levels, print_json, refuse_existing
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
    as_json: Json = False,
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
    if as_json:
        print_json(_about(file))
    else:
        print("\n".join(lines))
    return 0


def check(file: File, as_json: Json = False) -> int:
    """Say whether a file is whole and fits this machine."""
    from sdopt.compile_cache import packing

    return _told(lambda: packing.check(file), file if as_json else None)


def unpack(
    file: File,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An empty folder, or a new one.")],
    as_json: Json = False,
) -> int:
    """Unpack into an empty folder and print the environment to use it."""
    from sdopt.compile_cache import packing, place

    packing.refuse_full(folder)
    environment = place.variables(folder.absolute())
    return _told(
        lambda: packing.unpack(file, folder), file if as_json else None, environment=environment
    )


def _about(file: Path) -> dict[str, Any]:
    """What a whole file that fits this machine is of."""
    from sdopt.compile_cache import place

    manifest, _ = place.fitting(file)
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "unpacked_bytes": manifest.unpacked_bytes,
        "files": len(manifest.files),
        "levels": list(manifest.levels),
        "source": manifest.source,
        "made_for": manifest.made_for,
    }


def _told(do: Callable[[], list[str]], as_json: Path | None, **more: Any) -> int:
    """What was done, or what is wrong with the file and how to have another one.

    `as_json` is the file, if what is said is for programs.
    """
    from sdopt.compile_cache import place

    try:
        lines = do()
    except SdoptError as error:
        raise SdoptError(f"{error}; next: {place.PACK} FILE --force --levels LEVEL,...") from error
    if as_json is not None:
        print_json({**_about(as_json), **more})
    else:
        print("\n".join(lines))
    return 0
