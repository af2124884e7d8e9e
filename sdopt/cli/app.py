"""`sdopt`: which commands there are, and what becomes of their errors.

A command imports torch in its body: `--help` has to answer at once.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from sdopt import __version__
from sdopt.cli.accept import accept
from sdopt.cli.baseline import list_, prune, show
from sdopt.cli.bench import bench
from sdopt.cli.cache import check, pack, unpack
from sdopt.cli.compare import compare
from sdopt.cli.doctor import doctor
from sdopt.cli.generate import generate
from sdopt.cli.history import history
from sdopt.cli.levels import levels
from sdopt.cli.options import shown
from sdopt.cli.report import report
from sdopt.cli.serve import serve
from sdopt.cli.tune import tune
from sdopt.errors import SdoptError
from sdopt.util.files import cause

MISTAKE, INTERRUPTED = 2, 130
CODES = "0 done; 2 a mistake in the arguments, a broken file, or what cannot be done here"

_PLAIN: dict[str, Any] = {"rich_markup_mode": None, "add_completion": False}
app = typer.Typer(
    **_PLAIN, help="Fast Stable Diffusion 1.5: generate, compare, serve, measure, tune."
)
cache = typer.Typer(**_PLAIN, help="Keep compiled code in one file: pack, check, unpack.")
baseline = typer.Typer(**_PLAIN, help="Stored baselines: accept, list, show, prune.")
CONFIRMED = f"{CODES}; 1 not confirmed, and nothing written"


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sdopt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Nothing: the options act by themselves."""


def _add(to: typer.Typer, command: Callable[..., int], examples: str, codes: str = CODES) -> None:
    told = "\n".join(f"  {line}" for line in examples.splitlines())
    to.command(
        command.__name__.rstrip("_"), epilog=f"\b\nExample:\n{told}\n\nExit codes: {codes}."
    )(command)


_add(app, levels, "sdopt levels\nsdopt levels --json")
_add(
    app,
    generate,
    'sdopt generate "a large red star at the center on a blue background" --seed 1 -o star.png\n'
    "sdopt generate --like star.png",
    f"{CODES}; 1 with --like: the image is not the same, bit for bit",
)
_add(
    app,
    compare,
    'sdopt compare "a small blue ring at the center on a white background" --levels final,turbo',
)
_add(
    app,
    serve,
    "sdopt serve --level turbo\nsdopt serve --devices cuda:0,cuda:1 --sizes 512x512,512x768",
    "0 ended by SIGTERM or Ctrl-C, after what was queued; 2 a mistake in the arguments, or no "
    "worker can be had",
)
_add(
    app,
    bench,
    "sdopt bench --level turbo --compare\nsdopt bench --ab origin/main --level final",
    "those of the suite: 0 pass; 1 regression; 2 a fault, a mistake in the arguments, or nothing "
    "to run it with; 10 too noisy for an answer; 3 and 5 pytest's own, without a verdict",
)
_add(app, history, "sdopt history\nsdopt history --level turbo --metric latency_ms --json")
app.add_typer(baseline, name="baseline")
_add(
    baseline,
    accept,
    "sdopt baseline accept run.json --dry-run\n"
    'sdopt baseline accept run.json --reason "a decoder of better quality, 3 % slower"',
    CONFIRMED,
)
_add(baseline, list_, "sdopt baseline list")
_add(
    baseline,
    show,
    "sdopt baseline show 0015 --hardware nvidia-h100-80gb-hbm3-79gib-700-w --source sd15-random",
)
_add(baseline, prune, "sdopt baseline prune --dry-run", CONFIRMED)
_add(
    app,
    report,
    "sdopt report run.json -o run.html --markdown\nsdopt report run.json --against 0009",
    f"{CODES}; a regression in the run is no mistake of the report: 0",
)
app.add_typer(cache, name="cache")
_add(cache, pack, "sdopt cache pack turbo.tar.xz --levels turbo,express")
_add(cache, check, "sdopt cache check turbo.tar.xz")
_add(cache, unpack, "sdopt cache unpack turbo.tar.xz compiled/")
_add(
    app,
    tune,
    "sdopt tune --missing\nsdopt tune --prove",
    f"{CODES}; 1 with --prove or --static: a tile fails",
)
_add(
    app,
    doctor,
    "sdopt doctor\nsdopt doctor --json",
    f"{CODES}; 1 something has to be fixed",
)


def script() -> int:
    """What the command `sdopt` calls: `main`, without the notices of transformers' imports."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. A mistake is one line on stderr, and 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return app(given or ["--help"], prog_name="sdopt", standalone_mode=False) or 0
    except typer.TyperException as error:
        message: Any = getattr(error, "format_message", error.__str__)
        said = message().rstrip(".")
        stop = "" if said.endswith("?") else ";"
        return _told(f"{said}{stop} see sdopt --help, or --help of the command")
    except SdoptError as error:
        return _told(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _told(f"{where}{cause(error)}; {_next_step(error)}")
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _next_step(error: OSError) -> str:
    """For what no command has better words for."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room there, or name a place that has room; then run it again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "make it readable and writable for you, or name another place; then run it again"
    return "name another file or folder, and run it again"


def _told(message: str) -> int:
    print(f"error: {shown(message)}", file=sys.stderr)
    return MISTAKE
