"""`sdopt bench`: the suite, without knowing pytest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from sdopt.cli.options import SOURCE_HELP, DtypeOfAll, Pointers
from sdopt.cli.suite import check_installed
from sdopt.errors import SdoptError
from sdopt.levels import get_level

FOLDER = Path("benchmarks")
USAGE_ERROR, MISTAKE = 4, 2
"""pytest's own code for wrong arguments, and this command's."""


def bench(
    levels: Annotated[
        list[str] | None,
        typer.Option("--level", metavar="LEVEL", help="Only this one; may be given again."),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="NAME", help=SOURCE_HELP)
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="JSON lines instead of the own prompts."),
    ] = None,
    baselines: Annotated[
        Path | None,
        typer.Option("--baselines", metavar="DIR", help="Of histories and images (baselines/)."),
    ] = None,
    store: Annotated[
        bool, typer.Option("--store", help="Store this run, if no test fails.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Judge by the stored runs of this machine.")
    ] = False,
    accept: Annotated[
        bool, typer.Option("--accept", help="Store images, latents and counts as the new baseline.")
    ] = False,
    ab: Annotated[
        str | None,
        typer.Option("--ab", metavar="BASE", help="Compare with that git revision, in pairs."),
    ] = None,
    selftest: Annotated[
        bool, typer.Option("--selftest", help="Put faults in and see whether they are caught.")
    ] = False,
    compile_cache: Annotated[
        Path | None,
        typer.Option(
            "--compile-cache", metavar="FILE", help="Take compiled code from it, and renew it."
        ),
    ] = None,
    pointers: Pointers = False,
    dtype: DtypeOfAll = None,
    folder: Annotated[
        Path, typer.Option("--folder", metavar="DIR", help="Where the suite's tests are.")
    ] = FOLDER,
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- PYTEST...]", help="After --: anything else for pytest."),
    ] = None,
) -> int:
    """Measure the levels, judge them, and end with the suite's exit code.

    The verdicts stand in verdicts.json in the clone's root folder, for programs.
    """
    names = [get_level(name).name for name in levels or []]
    check_installed()
    if not folder.is_dir():
        raise SdoptError(
            f"there is no folder {folder} here: the suite's tests are in a clone of sdopt; run it "
            "there, or name their folder with --folder"
        )
    options = {
        "--sdopt-source": source,
        "--sdopt-prompts": prompts,
        "--sdopt-baselines": baselines,
        "--sdopt-ab": ab,
        "--sdopt-compile-cache": compile_cache,
    }
    switches = {
        "--benchmark-autosave": store,
        "--benchmark-compare": compare,
        "--sdopt-accept": accept,
        "--sdopt-selftest": selftest,
    }
    arguments = [str(folder)]
    arguments += [f"{name}={value}" for name, value in options.items() if value is not None]
    arguments += [name for name, wanted in switches.items() if wanted]
    if names:
        if "-k" in (more or []):
            raise SdoptError(
                "--level and -k after -- choose both, and pytest takes the last one: give --level, "
                "or one -k such as '[final] and latency'"
            )
        arguments += ["-k", " or ".join(f"[{name}]" for name in names)]
    code = _run([*arguments, *(more or [])])
    return MISTAKE if code == USAGE_ERROR else code


def _run(arguments: list[str]) -> int:
    """In a process of its own, so that it is what `pytest` is."""
    with subprocess.Popen((sys.executable, "-m", "pytest", *arguments)) as child:
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:  # the child has it too, and cleans up
                continue
