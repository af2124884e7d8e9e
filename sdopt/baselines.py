"""Baselines on disk: the hardware they are of, pictures, their limits, and counts of work."""

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
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdopt.errors import BrokenFileError
from sdopt.levels import Level
from sdopt.soundness import Unsound, check_settings, slug
from sdopt.stored_image import TEXT_KEY, read_stored_image
from sdopt.workload import Request

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

SCHEMA = 1
LIMIT_KINDS = ("drift", "cost", "truth", "latents", "float64")
PACKAGES = ("torch", "diffusers", "transformers")
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
        return slug(f"{self.name}-{self.memory_gib}gib-{self.detail}")

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


def versions() -> dict[str, str]:
    """Of everything that may move a number."""
    import torch

    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "cuda": str(torch.version.cuda),
        "threads": str(torch.get_num_threads()),
    }


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


def damaged(path: Path, what: str) -> BrokenFileError:
    """The error of a stored file that is not what was stored, with the next step."""
    error = BrokenFileError(
        f"{path} {what}; it was left as it is; git checkout -- {path} brings back what git has"
    )
    error.path = path
    return error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises BrokenFileError if it is missing, broken or no object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BrokenFileError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise damaged(path, f"cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise damaged(path, "holds no JSON object")
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
    text.add_text(TEXT_KEY, json.dumps(dict(made_by), sort_keys=True))
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
        raise damaged(path, f"has the shape {picture.shape}, this run's is {shape}")
    return picture


def load_picture(path: Path) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """A stored picture of shape (height, width, 3), and how it was made.

    Raises BrokenFileError if it cannot be decoded.
    """
    try:
        return read_stored_image(path)
    except (OSError, Unsound) as error:
        what = f"cannot be read: {error}" if isinstance(error, OSError) else str(error)
        raise damaged(path, what) from error


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
    """What passes, per level and kind; empty if the file does not exist.

    Of `latents` and `float64` the largest distance, of the others the lowest SSIM.
    """
    if not path.exists():
        return {}
    data = read_json(path)
    try:
        limits = {
            level: {kind: float(row["limit"]) for kind, row in rows.items()}
            for level, rows in data["levels"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, f"is incomplete: {error!r}") from error
    for level, kinds in limits.items():
        if not all(math.isfinite(limit) for limit in kinds.values()):
            raise damaged(path, f"is not sound: the limits of level {level!r} are {kinds}")
        if "drift" not in kinds or not set(kinds) <= set(LIMIT_KINDS):
            raise damaged(
                path,
                f"is of another kind: level {level!r} has the limits {sorted(kinds)}; a level has "
                "drift and maybe cost, truth, latents and float64",
            )
    return limits


def work_path(root: Path, baseline_set: str) -> Path:
    """Where the counts of work of each level are kept, which are the same on every machine."""
    return root / "work" / f"{baseline_set}.json"


def load_work(path: Path) -> dict[str, dict[str, Any]]:
    """The stored counts of work by level; empty if the file does not exist."""
    if not path.exists():
        return {}
    levels = read_json(path).get("levels")
    if not isinstance(levels, dict) or not all(isinstance(row, dict) for row in levels.values()):
        raise damaged(path, "holds no counts by level")
    for level, row in levels.items():
        try:
            check_settings(row)
        except Unsound as error:
            raise damaged(path, f"is not sound: level {level!r}: {error}") from error
    return levels


def save_work(path: Path, level: str, counts: Mapping[str, Any]) -> None:
    """Store a level's counts of work beside those of the others."""
    levels = {**load_work(path), level: dict(counts)}
    content = json.dumps({"schema": SCHEMA, "levels": levels}, indent=1, allow_nan=False)
    write_whole(path, content.encode())
