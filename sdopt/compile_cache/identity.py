"""What compiled code is of: the processor, the versions and the kernels it was compiled from."""

from __future__ import annotations

import hashlib
import platform
import re
import sysconfig
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sdopt import engine
from sdopt.util.precision import chosen_dtype, usual_dtype

KERNEL_FILES = (
    "cards.py",
    "epilogue.py",
    "kernels.py",
    "launch.py",
    "specialized.py",
    "specialized_attention.py",
    "specialized_launch.py",
    "stationary.py",
    "stationary_launch.py",
    "rules.py",
    "tables.py",
    "tables/sm_90.json",
    "tiles.py",
)
"""Of the engine: what its Triton kernels are compiled from, and for which shapes."""
NONE = "none"


def made_here() -> dict[str, str]:
    """What code compiled by this process would be of, by the names that a refusal gives."""
    import torch

    return {
        **(_gpu() if torch.cuda.is_available() else _cpu()),
        "machine": platform.machine(),
        "C library": " ".join(platform.libc_ver()).strip() or NONE,
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "torch": version("torch"),
        "triton": _triton_version(),
        "CUDA": str(torch.version.cuda or NONE),
        "diffusers": version("diffusers"),
        "kernels": kernels_digest(),
        **({"dtype": dtype} if (dtype := _dtype()) else {}),
    }


def misfit(made_for: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    """'of triton 3.5.0, this is 3.6.0' for all that differs, or None if the code runs here."""
    differing = [
        f"of {name} {made_for.get(name, NONE)}, this is {here.get(name, NONE)}"
        for name in {**here, **made_for}
        if made_for.get(name, NONE) != here.get(name, NONE)
    ]
    return "; ".join(differing) or None


def kernels_digest(folder: Path | None = None) -> str:
    """Of the sources of this project's kernels; another one means other kernels."""
    folder = folder or Path(engine.__file__).parent
    digest = hashlib.sha256()
    for name in KERNEL_FILES:
        path = folder / name
        content = path.read_bytes() if path.exists() else b""
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def _dtype() -> str | None:
    """Where it is not the usual one: what was packed before there was a choice has none."""
    import torch

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    return None if (chosen := chosen_dtype(kind)) == usual_dtype(kind) else chosen


def _gpu() -> dict[str, str]:
    import torch

    major, minor = torch.cuda.get_device_capability()
    return {"GPU": torch.cuda.get_device_name(), "compute capability": f"{major}.{minor}"}


def _cpu() -> dict[str, str]:
    """Inductor compiles C++ for the very CPU, and keys it by the folders of the headers."""
    import torch

    from sdopt.util.hardware import hardware_of

    return {
        "CPU": hardware_of(torch.device("cpu")).name.removeprefix("cpu "),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "CPU flags": _cpu_flags(),
        "torch folder": str(Path(torch.__file__).parent),
        "Python headers": sysconfig.get_path("include"),
    }


def _cpu_flags() -> str:
    """A digest of the instruction sets: virtual machines hide some of those that a model has."""
    found = None
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    flags = " ".join(sorted(found.group(1).split())) if found else ""
    return hashlib.sha256(flags.encode()).hexdigest()[:12] if flags else NONE


def _triton_version() -> str:
    for package in ("triton", "pytorch-triton"):
        with suppress(PackageNotFoundError):
            return version(package)
    return NONE
