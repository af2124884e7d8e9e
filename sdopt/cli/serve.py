"""`sdopt serve`: images over HTTP, as OpenAI's API has them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from sdopt.cli import options
from sdopt.cli.options import checked_size, checked_sizes, shown
from sdopt.errors import SHOWN, BrokenFileError, MissingToolError, SdoptError
from sdopt.levels import get_level

NEEDED = ("fastapi", "uvicorn", "prometheus_client", "isal", "pybase64")
DEVICE = re.compile(r"auto|cpu|cuda|cuda:[0-9]{1,3}")
MOST_BATCH = 16
TIMES = {"--wait": (0, 60_000, "ms"), "--grace": (0, 86_400, "s"), "--stuck": (0.1, 86_400, "s")}
"""The least and the most of each, and its unit."""


def serve(
    level: Annotated[
        str, typer.Option("--level", metavar="LEVEL", help="See `sdopt levels`.")
    ] = "turbo",
    source: options.Source = "auto",
    dtype: options.DtypeOfAll = None,
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="ADDRESS", help="Address to listen on; any but loopback warns."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", help="0 takes a free one.")] = 8000,
    devices: Annotated[
        str,
        typer.Option(
            "--devices",
            metavar="DEVICE,...",
            help="A worker process for each: cuda:0,cuda:1. auto is the first GPU, or the CPU.",
        ),
    ] = "auto",
    sizes: Annotated[
        str | None,
        typer.Option(
            "--sizes",
            metavar="WxH,...",
            help="Made ready at the start; the first is the default (default: the source's).",
        ),
    ] = None,
    max_batch: Annotated[
        int, typer.Option("--max-batch", metavar="N", help="Images generated at once, at most.")
    ] = 4,
    wait: Annotated[
        float,
        typer.Option(
            "--wait",
            metavar="MS",
            help="Longest wait of a request for others of its batch; alone it does not wait.",
        ),
    ] = 10.0,
    max_queue: Annotated[
        int,
        typer.Option(
            "--max-queue", metavar="N", help="Most images that wait; further ones get 429."
        ),
    ] = 64,
    max_size: Annotated[
        int | None,
        typer.Option(
            "--max-size", metavar="PX", help="Longest side (default: the longest of --sizes)."
        ),
    ] = None,
    max_steps: Annotated[
        int, typer.Option("--max-steps", metavar="N", help="Most steps of a request.")
    ] = 50,
    max_prompt_length: Annotated[
        int, typer.Option("--max-prompt-length", metavar="N", help="Most characters of a prompt.")
    ] = 1000,
    max_images: Annotated[
        int,
        typer.Option(
            "--max-images",
            metavar="N",
            help="Most images of a request, its `n`; never more than --max-queue.",
        ),
    ] = 10,
    cold: Annotated[
        bool,
        typer.Option(
            "--cold", help="Also serve what has to be compiled on request, which takes long once."
        ),
    ] = False,
    grace: Annotated[
        float,
        typer.Option("--grace", metavar="S", help="Time to finish queued images after SIGTERM."),
    ] = 30.0,
    stuck: Annotated[
        float,
        typer.Option("--stuck", metavar="S", help="Restart a worker whose batch takes longer."),
    ] = 120.0,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file", metavar="FILE", help="API keys, one a line; /v1 then asks for one."
        ),
    ] = None,
) -> int:
    """Serve POST /v1/images/generations and GET /v1/models, as OpenAI's clients call them.

    Also /healthz and /metrics. Logs are JSON lines on stderr. It listens on loopback, without
    authentication.
    """
    texts = {"--level": level, "--source": source, "--host": host, "--devices": devices}
    _check_given({**texts, "--sizes": sizes, "--api-key-file": api_key_file})
    get_level(level)
    _check_needed()
    counts = {
        "--max-batch": max_batch,
        "--max-queue": max_queue,
        "--max-steps": max_steps,
        "--max-prompt-length": max_prompt_length,
        "--max-images": max_images,
    }
    _check(counts, {"--wait": wait, "--grace": grace, "--stuck": stuck}, port)
    pixels = checked_sizes(sizes)
    longest = _checked_longest(max_size, pixels)
    from sdopt.service.server import run
    from sdopt.service.settings import Settings

    settings = Settings(
        level=level,
        source=source,
        devices=_checked_devices(devices),
        host=host,
        port=port,
        sizes=pixels,
        max_batch=max_batch,
        wait_ms=wait,
        max_queue=max_queue,
        max_size=longest,
        max_steps=max_steps,
        max_prompt_length=max_prompt_length,
        max_images=max_images,
        cold=cold,
        grace_s=grace,
        stuck_s=stuck,
        api_keys=() if api_key_file is None else _read_keys(api_key_file),
    )
    return run(settings, _started)


def _started(url: str, _: Callable[[], None]) -> None:
    print(f"listening on {url}; ready: {url}/healthz", flush=True)


def _check_needed() -> None:
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise MissingToolError(
            f"sdopt serve needs {', '.join(missing)}; in a clone of sdopt, "
            "pip install -c constraints.txt -e '.[serve]' brings them"
        )


def _check_given(values: Mapping[str, str | Path | None]) -> None:
    """An unset variable of a shell must not quietly mean something else."""
    for name, value in values.items():
        if value is not None and (value == Path() or not str(value).strip()):
            raise SdoptError(f"{name} is empty (an unset variable?); give a value, or leave it out")


def _check(counts: dict[str, int], times: dict[str, float], port: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise SdoptError(f"{name} is {shown(str(count), SHOWN)}; give 1 or more")
    if counts["--max-batch"] > MOST_BATCH:
        raise SdoptError(
            f"--max-batch is {shown(str(counts['--max-batch']), SHOWN)}; give {MOST_BATCH} or less"
        )
    for name, value in times.items():
        least, most, unit = TIMES[name]
        if not least <= value <= most:  # NaN neither
            raise SdoptError(f"{name} is {value} {unit}; give {least} to {most}")
    if not 0 <= port <= 65535:
        raise SdoptError(f"--port is {shown(str(port), SHOWN)}; give 0 to 65535")


def _checked_devices(devices: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in devices.split(","))
    for name in names:
        if not DEVICE.fullmatch(name):
            raise SdoptError(
                f"--devices names {shown(name, SHOWN)!r}; give auto, cpu, or cuda:0,cuda:1"
            )
    gpus = ["cuda:0" if name in ("auto", "cuda") else name for name in names if name != "cpu"]
    if len({*gpus}) < len(gpus):
        raise SdoptError(f"--devices is {shown(devices, SHOWN)!r}; name each GPU once")
    return names


def _checked_longest(max_size: int | None, sizes: tuple[tuple[int, int], ...]) -> int | None:
    if max_size is None:
        return None
    longest, _ = checked_size(shown(str(max_size), SHOWN), "--max-size")
    for width, height in sizes:
        if max(width, height) > longest:
            raise SdoptError(
                f"--max-size is {longest}, and --sizes names {width}x{height}; "
                f"give {max(width, height)} or more, or leave the size out"
            )
    return longest


def _read_keys(file: Path) -> tuple[str, ...]:
    """Raises BrokenFileError for a file without a key, SdoptError if others may read it."""
    keys = tuple(options.lines_of(file, "key"))
    if file.stat().st_mode & 0o077 and os.name == "posix":
        raise SdoptError(f"{file} can be read by others; chmod 600 {file}")
    if bad := [key for key in keys if not key.isascii() or " " in key]:
        raise BrokenFileError(f"{file}: {len(bad)} keys hold blanks or other than ASCII characters")
    return keys
