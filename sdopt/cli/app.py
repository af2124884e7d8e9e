"""`sdopt`: which commands there are, and what becomes of their errors.

A command imports torch in its body: `--help` has to answer at once.
"""

from __future__ import annotations

import errno
import logging
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
from sdopt.cli.evaluate import evaluate
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
    **_PLAIN, help="Fast Stable Diffusion 1.5: generate, compare, serve, measure, evaluate, tune."
)
CONFIRMED = f"{CODES}; 1 not confirmed, and nothing written"


def _is_of_use(record: logging.LogRecord) -> bool:
    """Not the advice to install torchvision for image processors that nothing here calls."""
    return "requires torchvision" not in record.getMessage()


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


def _epilog(examples: str, codes: str) -> str:
    told = "\n".join(f"  {line}" for line in examples.splitlines())
    return f"\b\nExample:\n{told}\n\nExit codes: {codes}."


def _add(
    to: typer.Typer, command: Callable[..., int], short: str, examples: str, codes: str = CODES
) -> None:
    """`short` is its line in the list of commands, which cuts what does not fit into 80 columns."""
    name = command.__name__.rstrip("_")
    to.command(name, short_help=short, epilog=_epilog(examples, codes))(command)


cache = typer.Typer(
    **_PLAIN,
    help="Keep compiled code in one file: pack, check, unpack.",
    epilog=_epilog(
        "sdopt cache pack turbo.tar.xz --levels turbo,express\n"
        "sdopt cache unpack turbo.tar.xz compiled/",
        CODES,
    ),
)
baseline = typer.Typer(
    **_PLAIN,
    help="Stored baselines: accept, list, show, prune.",
    epilog=_epilog("sdopt baseline list\nsdopt baseline accept run.json --dry-run", CONFIRMED),
)

_add(app, levels, "Show the ladder and what runs here.", "sdopt levels\nsdopt levels --json")
_add(
    app,
    generate,
    "Generate an image, or a grid of several.",
    'sdopt generate "a large red star at the center on a blue background" --seed 1 -o star.png\n'
    "sdopt generate --like star.png",
    f"{CODES}; 1 with --like: the image is not the same, bit for bit",
)
_add(
    app,
    compare,
    "Generate one prompt with several levels, side by side.",
    'sdopt compare "a small blue ring at the center on a white background" --levels final,turbo',
)
_add(
    app,
    serve,
    "Serve images over HTTP, as OpenAI's API has them.",
    "sdopt serve --level turbo\nsdopt serve --devices cuda:0,cuda:1 --sizes 512x512,512x768",
    "0 ended by SIGTERM or Ctrl-C, after what was queued; 2 a mistake in the arguments, or no "
    "worker can be had",
)
_add(
    app,
    bench,
    "Measure and judge the levels; ends with the suite's exit code.",
    "sdopt bench --level turbo --compare\nsdopt bench --ab origin/main --level final",
    "those of the suite: 0 pass; 1 regression; 2 a fault, a mistake in the arguments, or nothing "
    "to run it with; 10 too noisy for an answer; 3 and 5 pytest's own, without a verdict",
)
_add(
    app,
    evaluate,
    "Say what levels cost over thousands of prompts.",
    "sdopt evaluate --levels turbo --reference hoisted --source embedded --scenes 2000 "
    "--out quality/\n"
    "accelerate launch -m sdopt.evaluate --levels final --prompts captions --out quality/",
    f"{CODES}; 1 the bound of an interval passes a --limit",
)
_add(
    app,
    history,
    "Show the stored runs of this machine.",
    "sdopt history\nsdopt history --level turbo --metric latency_ms --json",
)
app.add_typer(baseline, name="baseline")
_add(
    baseline,
    accept,
    "Make a run the new baseline, after showing old against new.",
    "sdopt baseline accept run.json --dry-run\n"
    'sdopt baseline accept run.json --reason "a decoder of better quality, 3 % slower"',
    CONFIRMED,
)
_add(baseline, list_, "List the stored histories and images.", "sdopt baseline list")
_add(
    baseline,
    show,
    "Show one stored run and its metrics.",
    "sdopt baseline show 0015 --hardware nvidia-h100-80gb-hbm3-79gib-700-w --source sd15-random",
)
_add(
    baseline,
    prune,
    "Remove stored runs that judge nothing any more.",
    "sdopt baseline prune --dry-run",
    CONFIRMED,
)
_add(
    app,
    report,
    "Judge a run and show it as an HTML page or Markdown.",
    "sdopt report run.json -o run.html --markdown\nsdopt report run.json --against 0009",
    f"{CODES}; a regression in the run is no mistake of the report: 0",
)
app.add_typer(cache, name="cache")
_add(
    cache,
    pack,
    "Compile levels in a fresh process and pack the result.",
    "sdopt cache pack turbo.tar.xz --levels turbo,express",
)
_add(
    cache,
    check,
    "Say whether a file is whole and fits this machine.",
    "sdopt cache check turbo.tar.xz\nsdopt cache check turbo.tar.xz --json",
)
_add(
    cache,
    unpack,
    "Unpack into an empty folder; prints how to use it.",
    "sdopt cache unpack turbo.tar.xz compiled/",
)
_add(
    app,
    tune,
    "Measure the best tiles of each kernel on this GPU, or prove them.",
    "sdopt tune --missing\nsdopt tune --prove",
    f"{CODES}; 1 the time is over, or, with --prove and --static, a tile fails. The result is a "
    "JSON file, the table in --out",
)
_add(
    app,
    doctor,
    "Say what is installed here and what has to be fixed.",
    "sdopt doctor\nsdopt doctor --json",
    f"{CODES}; 1 something has to be fixed",
)


def script() -> int:
    """What the command `sdopt` calls: `main`, without the notices of transformers' imports."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. A mistake is one line on stderr, and 2."""
    logging.getLogger("transformers.utils.import_utils").addFilter(_is_of_use)
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
