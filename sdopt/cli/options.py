"""Options that several commands share, and the checks of their values."""

from __future__ import annotations

import json
import os
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from sdopt.errors import BrokenFileError, SdoptError, UnknownNameError
from sdopt.levels import get_level
from sdopt.util.files import cause, given, is_whole, read_plain
from sdopt.util.hardware import POINTERS
from sdopt.util.precision import DTYPE, NAMES, WHY
from sdopt.util.text import shown as shown

SOURCE_HELP = (
    "Weights: auto, embedded, sd15-random, a diffusers folder, a .safetensors file or a repository "
    "of the Hugging Face hub."
)
LARGEST_PX, MULTIPLE_PX = 4096, 8
RUN_EXPECTED = (
    "name what --benchmark-json=FILE wrote, or a stored run: `sdopt baseline list` names the newest"
)
MOST_STEPS = 1000
MOST_AT_ONCE = 256
"""Images in a call."""
MOST_SEED = 2**63
MOST_GUIDANCE = 1000.0
"""Far more than any image is of use with; float16 ends at 65504."""
MOST_TEXT_BYTES = 2**26

Source = Annotated[str, typer.Option("--source", metavar="NAME", help=SOURCE_HELP)]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the initial noise.")]
Size = Annotated[
    str | None,
    typer.Option("--size", metavar="WxH", help="Pixels: 512, or 512x768 (default: the source's)."),
]
Steps = Annotated[
    int | None,
    typer.Option("--steps", metavar="N", help="Steps of the solver (default: the level's)."),
]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance", metavar="SCALE", help="Guidance scale (default: the source's)."),
]
Negative = Annotated[
    str, typer.Option("--negative", metavar="PROMPT", help="What the image shall not show.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]
Baselines = Annotated[
    Path, typer.Option("--baselines", metavar="DIR", help="The folder of what is stored.")
]


def _through_pointers(wanted: bool) -> bool:
    """An environment variable, since children of this process have to read it too."""
    if wanted:
        os.environ[POINTERS] = "1"
    return wanted


Pointers = Annotated[
    bool,
    typer.Option(
        "--pointers",
        callback=_through_pointers,
        help="Let kernels read as on GPUs before Hopper ($SDOPT_POINTERS is 1).",
    ),
]
DTYPE_HELP = (
    "What images are computed in: float16 (float32 on a CPU), or bfloat16 for weights that "
    "overflow (default: $SDOPT_DTYPE)."
)


def check_dtype(name: str | None) -> str | None:
    """Raise UnknownNameError for one that no device has."""
    if name is not None and name not in NAMES:
        raise UnknownNameError("--dtype", name, NAMES, WHY)
    return name


def _for_children(name: str | None) -> str | None:
    """An environment variable, since children of this process have to read it too."""
    if check_dtype(name) is not None:
        os.environ[DTYPE] = str(name)
    return name


Dtype = Annotated[
    str | None,
    typer.Option("--dtype", metavar="DTYPE", callback=check_dtype, help=DTYPE_HELP),
]
DtypeOfAll = Annotated[
    str | None,
    typer.Option("--dtype", metavar="DTYPE", callback=_for_children, help=DTYPE_HELP),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def print_json(value: Any) -> None:
    """For programs: one document on stdout."""
    print(json.dumps(value, indent=1))


def checked_levels(names: str) -> list[str]:
    """'final,turbo' as names of levels, each known."""
    return [get_level(name.strip()).name for name in names.split(",")]


def checked_size(size: str, option: str = "--size") -> tuple[int, int]:
    """'512x768' as width and height."""
    found = re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", size)
    width, height = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not all(MULTIPLE_PX <= px <= LARGEST_PX and px % MULTIPLE_PX == 0 for px in (width, height)):
        raise SdoptError(
            f"{option} is {shown(size, 80)!r}; give pixels, as 512 or 512x768 (width x height): "
            f"multiples of {MULTIPLE_PX}, at most {LARGEST_PX}"
        )
    return width, height


def checked_sizes(sizes: str | None) -> tuple[tuple[int, int], ...]:
    """'512,512x768' of --sizes as widths and heights, each once; none for None."""
    if sizes is None:
        return ()
    found = [checked_size(size.strip(), "--sizes") for size in sizes.split(",")]
    return tuple(dict.fromkeys(found))


def checked_counts(counts: str, option: str) -> tuple[int, ...]:
    """'1,4' as numbers of images in a call, each once."""
    found = [count.strip() for count in counts.split(",")]
    if not all(re.fullmatch("[0-9]{1,4}", n) and 1 <= int(n) <= MOST_AT_ONCE for n in found):
        raise SdoptError(
            f"{option} is {shown(counts, 80)!r}; give numbers from 1 to {MOST_AT_ONCE}, as 1,4"
        )
    return tuple(dict.fromkeys(map(int, found)))


def check_numbers(
    *, seed: int = 0, steps: int | None = None, guidance: float | None = None
) -> None:
    """Raise SdoptError for a number that no image can be made with."""
    if not 0 <= seed < MOST_SEED:
        raise SdoptError(f"--seed is {seed}; give an integer from 0 to 2**63 - 1")
    if steps is not None and not 1 <= steps <= MOST_STEPS:
        raise SdoptError(f"--steps is {steps}; give an integer from 1 to {MOST_STEPS}")
    if guidance is not None and not 0 <= guidance <= MOST_GUIDANCE:
        raise SdoptError(
            f"--guidance is {guidance}; give a number from 0 to {MOST_GUIDANCE:g}; 1 means none"
        )


def check_prompt(prompt: str) -> None:
    """Raise SdoptError for one that says nothing."""
    if not prompt.strip():
        raise SdoptError(
            'the prompt is empty (an unset variable?); say what the image shows: "a red star"'
        )
    if not is_whole(prompt):
        raise SdoptError(f"the prompt {prompt!r} is no UTF-8 text; give it in UTF-8")


def check_out(out: Path, *, force: bool) -> None:
    """Refuse, before seconds of work, a file that is no .png or would replace another one."""
    if out.suffix.lower() != ".png":
        raise SdoptError(f"-o is {str(out)!r}; images are written as PNG: name a .png file")
    refuse_existing(out, force=force)


def refuse_existing(out: Path, *, force: bool) -> None:
    """Raise SdoptError for a file that is there, unless it may be replaced."""
    if out.is_dir():
        raise SdoptError(f"{out} is a folder; name a file in it")
    if out.exists() and not force:
        raise SdoptError(f"{out} is there already; name another file, or give --force")


def check_baselines(folder: Path, usual: Path) -> None:
    """Raise SdoptError for a folder that is not there; without the usual one nothing is stored."""
    if not folder.is_dir() and (folder != usual or folder.exists()):
        raise SdoptError(
            f"there is no folder {folder}; name that of the baselines with --baselines"
        )


def named_run(run: Path, baselines: Path) -> AbstractContextManager[None]:
    """What is wrong with a run that somebody named is told without git, which may have none."""
    if run.exists() and run.resolve().is_relative_to(baselines.resolve()):
        return nullcontext()
    return given(run, RUN_EXPECTED)


def lines_of(file: Path, what: str = "prompt") -> list[str]:
    """The lines of a text file that hold anything. Raises BrokenFileError naming the file."""
    try:
        lines = read_plain(file, MOST_TEXT_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BrokenFileError(
            f"{file} cannot be read as text: {cause(error)}; give a file with one {what} a line"
        ) from error
    if not (found := [line.strip() for line in lines if line.strip()]):
        raise BrokenFileError(f"{file} holds no {what}; write one a line")
    return found
