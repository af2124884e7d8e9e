"""Baselines on disk: histories per hardware and source, and pictures per level and prompt."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from sdopt.errors import BrokenFileError
from sdopt.levels import Level
from sdopt.workload import Request

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

SCHEMA = 1
RUN_NAME = re.compile(r"(\d{4,})_.*\.json")
PARTIAL = "_partial"
"""How the name of a run ends that left benchmarks out."""
IMAGE_TEXT_KEY = "sdopt"
LIMIT_KINDS = ("drift", "cost", "truth")
SMI_FORMAT = ("--format=csv,noheader,nounits",)


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a measurement was made on. Runs of different `key` are never compared."""

    name: str
    memory_gib: int
    detail: str

    @property
    def key(self) -> str:
        """The folder name, for example 'nvidia-h100-80gb-hbm3-80gib-700-w'."""
        return _slug(f"{self.name}-{self.memory_gib}gib-{self.detail}")

    def __str__(self) -> str:
        return f"{self.name}, {self.memory_gib} GiB, {self.detail}"


def hardware_of(device: torch.device) -> Hardware:
    """Name, memory and power limit of a CUDA device; name, memory and cores of a CPU."""
    if device.type == "cuda":
        return _cuda_hardware(device)
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(
        name=f"cpu {_cpu_name()}",
        memory_gib=round(pages / 2**30),
        detail=f"{len(os.sched_getaffinity(0))} cores",
    )


def _cuda_hardware(device: torch.device) -> Hardware:
    import torch

    properties = torch.cuda.get_device_properties(device)
    return Hardware(
        name=properties.name,
        memory_gib=round(properties.total_memory / 2**30),
        detail=f"{_power_limit_w(str(properties.uuid))} W",
    )


def _power_limit_w(uuid: str) -> int:
    """The enforced power limit in watts, as `nvidia-smi` reads it.

    Raises BrokenFileError if it cannot be had: without it two cards would share one key.
    """
    command = ("nvidia-smi", f"--id=GPU-{uuid}", "--query-gpu=power.limit", *SMI_FORMAT)
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return round(float(answer.stdout.strip()))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise BrokenFileError(
            f"the power limit of GPU {uuid} cannot be read ({error}), and it is part of the "
            f"hardware key; see what `{' '.join(command)}` says"
        ) from error


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a temporary name beside it, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """One run of a history: its metrics per level and the tests that reached a verdict."""

    path: Path
    metrics: Mapping[str, Mapping[str, Any]]
    judged: tuple[str, ...]
    environment: Mapping[str, str]


def history_folder(root: Path, hardware: Hardware, baseline_set: str) -> Path:
    """Where the runs of this hardware and baseline set are kept."""
    return root / "history" / hardware.key / baseline_set


def save_run(folder: Path, name: str, run: Mapping[str, Any], *, partial: bool = False) -> Path:
    """Store a run under the next free number and return its path; never replaces a file.

    `partial` is for a run that left benchmarks out: see `find_run`.
    """
    content = json.dumps(run, indent=1, allow_nan=False).encode()
    folder.mkdir(parents=True, exist_ok=True)
    number = max((_number(path) for path in _runs(folder)), default=0)
    while True:
        number += 1
        # Whoever makes this file has the number: two runs of different names would share it.
        claim = folder / f"{number:04}.partial"
        try:
            claim.touch(exist_ok=False)
        except FileExistsError:
            continue
        try:
            if all(_number(other) != number for other in _runs(folder)):
                path = folder / f"{number:04}_{name}{PARTIAL if partial else ''}.json"
                write_whole(path, content)
                return path
        finally:
            claim.unlink()


def find_run(folder: Path, wanted: str | None) -> Path:
    """The newest run of a folder, or the newest that `wanted` names by number, name or path.

    A whole run comes before any partial one, or storing one level would hide all the others.
    Raises BrokenFileError that names the newest choices if there is none.
    """
    if wanted and Path(wanted).is_file():
        return Path(wanted)
    runs = sorted(_runs(folder), key=_number)
    found = [path for path in runs if _is_called(path, wanted)] if wanted else runs
    if not found:
        which = f"run {wanted!r}" if wanted else "stored run"
        choices = f"; choose from: {', '.join(path.name for path in runs[-5:])}" if runs else ""
        raise BrokenFileError(f"no {which} for this hardware and source in {folder}{choices}")
    whole = [path for path in found if not path.stem.endswith(PARTIAL)]
    return (whole or found)[-1]


def _is_called(path: Path, wanted: str) -> bool:
    """Whether `wanted` is the run's number, its name, or how its file name begins."""
    if wanted.isdecimal():
        return _number(path) == int(wanted)
    return path.name.startswith(wanted) or path.stem.split("_", 1)[1] == wanted


def _runs(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.json") if RUN_NAME.fullmatch(path.name)]


def _number(path: Path) -> int:
    found = RUN_NAME.fullmatch(path.name)
    return int(found.group(1)) if found else 0


def read_runs(folder: Path) -> list[StoredRun]:
    """Every run of a history folder, oldest first. Raises BrokenFileError if there is none."""
    paths = sorted(_runs(folder), key=_number)
    if not paths:
        raise BrokenFileError(f"{folder} holds no stored run; give history/<hardware>/<source>")
    return [_stored_run(path, *_checked(path)) for path in paths]


def load_run(path: Path, hardware: Hardware, baseline_set: str) -> StoredRun:
    """A stored run, checked. Raises BrokenFileError for a broken or foreign one."""
    data, block = _checked(path)
    for name, here in (("hardware", hardware.key), ("baseline_set", baseline_set)):
        if block.get(name) != here:
            raise BrokenFileError(
                f"{path} is of another {name.replace('_', ' ')}: {block.get(name)!r}, "
                f"this run is {here!r}"
            )
    return _stored_run(path, data, block)


def _checked(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The whole file and its block of this suite."""
    data = _read_json(path)
    block = data.get("sdopt")
    if not isinstance(block, dict) or block.get("schema") != SCHEMA:
        raise BrokenFileError(
            f"{path} was not written by this suite: its 'sdopt' block is "
            f"{'of another schema' if block else 'missing'}"
        )
    return data, block


def _stored_run(path: Path, data: dict[str, Any], block: dict[str, Any]) -> StoredRun:
    try:
        return StoredRun(
            path=path,
            metrics=_metrics(data["benchmarks"]),
            judged=tuple(block["judged"]),
            environment=dict(block["environment"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BrokenFileError(f"{path} is incomplete: {error!r}") from error


def _metrics(benchmarks: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Metrics per level, with the latency from the raw rounds."""
    metrics = {}
    for entry in benchmarks:
        info = dict(entry["extra_info"])
        rounds = entry["stats"]["data"]
        info["latency_ms"] = 1e3 * median(rounds) if rounds else math.nan
        metrics[info["level"]] = info
    return metrics


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BrokenFileError(f"{path} cannot be read: {error}; it was left as it is") from error
    if not isinstance(data, dict):
        raise BrokenFileError(f"{path} holds no JSON object; it was left as it is")
    return data


def image_path(root: Path, baseline_set: str, level: str, prompt: str) -> Path:
    """Where the picture of a level and prompt is kept."""
    return root / "images" / baseline_set / level / f"{prompt}.png"


def save_image(path: Path, picture: NDArray[np.uint8], made_by: Mapping[str, Any]) -> None:
    """Write a picture of shape (height, width, 3) as PNG, with how it was made inside."""
    import io

    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text(IMAGE_TEXT_KEY, json.dumps(dict(made_by), sort_keys=True))
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", pnginfo=text, optimize=True)
    write_whole(path, buffer.getvalue())


def load_image(
    path: Path,
    request: Request,
    level: Level,
    guidance_scale: float,
    shape: tuple[int, ...] | None = None,
) -> NDArray[np.uint8]:
    """The stored picture of a request, of shape (height, width, 3).

    Raises BrokenFileError if it is missing, cannot be decoded, or is of another request, guidance
    scale, shape or definition of the level.
    """
    if not path.is_file():
        raise BrokenFileError(f"no baseline image {path}")
    picture, made_by = load_picture(path)
    here = request_fields(request)
    stored = {name: made_by.get(name) for name in here}
    if stored != here:
        raise BrokenFileError(f"{path} was made for another request: {stored}, not {here}")
    if changes := redefinition(made_by, level, guidance_scale):
        raise BrokenFileError(f"{path} was made with other settings: {changes}")
    if shape is not None and picture.shape != shape:
        raise BrokenFileError(f"{path} has the shape {picture.shape}, this run's is {shape}")
    return picture


def load_picture(path: Path) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """A stored picture of shape (height, width, 3), and how it was made.

    Raises BrokenFileError if it cannot be decoded.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            made_by = json.loads(image.info.get(IMAGE_TEXT_KEY, "{}"))
            picture = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise BrokenFileError(f"{path} cannot be decoded: {error}; it was left as it is") from error
    if not isinstance(made_by, dict):
        raise BrokenFileError(f"{path} says nothing about how it was made; it was left as it is")
    return picture, made_by


def redefinition(stored: Mapping[str, Any], level: Level, guidance_scale: float) -> str | None:
    """In what a stored picture or measurement is of other settings, or None.

    `stored` holds the `level_fields` and the `guidance_scale` it was made with.
    """
    changes = level.changed_since(stored.get("level_fields", {}))
    before = stored.get("guidance_scale")
    if before != guidance_scale:
        changes.append(f"guidance_scale {before} -> {guidance_scale}")
    return ", ".join(changes) or None


def request_fields(request: Request) -> dict[str, Any]:
    """What identifies a request inside a stored picture."""
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": request.seed,
    }


def limits_path(root: Path, source: str) -> Path:
    """Where the measured SSIM limits of a source are kept."""
    return root / "images" / source / "limits.json"


def load_limits(path: Path) -> dict[str, dict[str, float]]:
    """The lowest SSIM that passes, per level and kind; empty if the file does not exist."""
    if not path.exists():
        return {}
    data = _read_json(path)
    try:
        limits = {
            level: {kind: float(row["limit"]) for kind, row in rows.items()}
            for level, rows in data["levels"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BrokenFileError(f"{path} is incomplete: {error!r}; it was left as it is") from error
    for level, kinds in limits.items():
        if "drift" not in kinds or not set(kinds) <= set(LIMIT_KINDS):
            raise BrokenFileError(
                f"{path}: level {level!r} has the limits {sorted(kinds)}; a level has drift and "
                "maybe cost and truth; it was left as it is"
            )
    return limits
