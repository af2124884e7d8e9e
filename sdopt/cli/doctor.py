"""`sdopt doctor`: what is here, what `auto` chooses, and what has to be fixed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdopt.cli.options import Json, print_json, shown
from sdopt.cli.progress import progress
from sdopt.errors import SdoptError, UnknownNameError
from sdopt.levels import LEVELS
from sdopt.util.precision import DTYPE, chosen_dtype

if TYPE_CHECKING:
    import torch

TO_FIX = 1
MIB = 2**20
PACKAGES = ("torch", "triton", "diffusers", "transformers", "peft", "numpy", "safetensors")
LITTLE_MIB = 6 * 1024
"""Less free memory than this is too little for some level with the full model."""


def doctor(as_json: Json = False) -> int:
    """Say what device, versions, caches and weights are here, and what has to be fixed."""
    from sdopt.pipelines.pipeline import default_device

    device = default_device()
    with progress("looking around", None):
        found = _found(device)
    found["fix"] = [*_to_fix(device, found)]
    found["notes"] = [*_notes(device, found)]
    if as_json:
        print_json(found)
    else:
        _print(found)
    return TO_FIX if found["fix"] else 0


def _found(device: torch.device) -> dict[str, Any]:
    from sdopt import __version__
    from sdopt.pipelines.device_limits import cpp_compiler

    return {
        "sdopt": __version__,
        "device": _device(device),
        "free_memory_mib": _free_memory(device),
        "foreign_gpu_processes": _foreign(device),
        "compiler": {"c++": cpp_compiler(), "triton": _version("triton")},
        "versions": {name: _version(name) for name in PACKAGES},
        "caches": [*_caches()],
        "weights": _weights(),
        "auto": _auto(device),
        "levels": _levels(device),
    }


def _device(device: torch.device) -> dict[str, Any]:
    import torch

    from sdopt.engine.cards import card_of
    from sdopt.engine.tables import described
    from sdopt.util.hardware import hardware_of

    found: dict[str, Any] = {"kind": device.type, "hardware": None, "problem": None}
    try:
        found["hardware"] = str(hardware_of(device))
    except SdoptError as error:
        found["problem"] = str(error)
    found["driver"] = _driver()
    found["cuda"] = torch.version.cuda
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        found["compute_capability"] = f"{major}.{minor}"
        try:
            found["kernels"] = described(card_of(device))
        except SdoptError as error:  # a damaged table of one's own
            found["problem"] = str(error)
    return found


def _driver() -> str | None:
    """Of NVIDIA, if there is one."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None


def _free_memory(device: torch.device) -> dict[str, int]:
    import psutil
    import torch

    found = {"host": psutil.virtual_memory().available // MIB}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.mem_get_info(device)[0] // MIB
    return found


def _foreign(device: torch.device) -> dict[str, int]:
    """MiB by process id."""
    if device.type != "cuda":
        return {}
    import pynvml

    from sdopt.util.hardware import nvml_handle, other_processes

    try:
        return {str(pid): mib for pid, mib in other_processes(nvml_handle(device)).items()}
    except pynvml.NVMLError:
        return {}


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def _caches() -> Iterator[dict[str, Any]]:
    from huggingface_hub import constants
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    from sdopt.compile_cache import place

    triton = os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache"
    folders = {
        "unpacked by sdopt": place.root(),
        "Inductor": Path(cache_dir()),
        "Triton": Path(triton),
        "Hugging Face hub": Path(constants.HF_HUB_CACHE),
    }
    for name, folder in folders.items():
        yield {"name": name, "folder": str(folder), "mib": round(_size(folder) / MIB, 1)}


def _size(folder: Path) -> int:
    """Bytes of all files; a link counts as nothing."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # another process removes it
                total += os.lstat(os.path.join(where, name)).st_size
    return total


def _weights() -> list[dict[str, Any]]:
    """Which sources need no download."""
    from sdopt.weights import hub
    from sdopt.weights.sources import WEIGHTS

    real = hub.cached(hub.STABLE_DIFFUSION_15, hub.PIPELINE_FILES, WEIGHTS)
    tiny = hub.cached(hub.TAESD, hub.MODEL_FILES, hub.MODEL_FILES)
    return [
        {"source": "embedded", "at_hand": True},
        {"source": "sd15-random", "at_hand": True},
        {"source": hub.STABLE_DIFFUSION_15.repo_id, "at_hand": real is not None},
        {"source": f"{hub.TAESD.repo_id} (Tiny VAE)", "at_hand": tiny is not None},
    ]


def _auto(device: torch.device) -> dict[str, str]:
    from sdopt.weights.sources import resolve

    source = resolve("auto")
    return {"device": str(device), "source": source.name, "why": source.why}


def _levels(device: torch.device) -> dict[str, str | None]:
    """Why each level does not run here; None if it does."""
    from sdopt.cli.levels import hindrance

    return {name: hindrance(level, device) for name, level in LEVELS.items()}


def _to_fix(device: torch.device, found: dict[str, Any]) -> Iterator[str]:
    """What keeps something from working, with the next step."""
    if found["device"]["problem"]:
        yield found["device"]["problem"]
    if found["device"]["driver"] and device.type != "cuda":
        yield (
            f"there is an NVIDIA driver ({found['device']['driver']}), and torch "
            f"{found['versions']['torch']} sees no GPU: install a torch that is built with CUDA, "
            "and look at $CUDA_VISIBLE_DEVICES"
        )
    if device.type == "cpu":
        yield from {reason: None for reason in found["levels"].values() if reason}
    elif not found["compiler"]["triton"]:
        yield "there is no Triton, which compiles the kernels: pip install triton"
    with suppress(KeyError):
        yield from _bad_dtype(device.type, os.environ[DTYPE])
    yield from _unmet()
    for cache in found["caches"]:
        folder = Path(cache["folder"])
        if folder.exists() and not os.access(folder, os.W_OK):
            yield f"the cache of {cache['name']}, {folder}, cannot be written: change its owner"


def _bad_dtype(device_type: str, given: str) -> Iterator[str]:
    try:
        chosen_dtype(device_type, given or None)
    except UnknownNameError as error:
        yield f"${DTYPE}: {error}"


def _unmet() -> Iterator[str]:
    """Installed packages that are other ones than sdopt was run with."""
    from packaging.requirements import Requirement

    try:
        lines = requires("sdopt") or []
    except PackageNotFoundError:  # run from a folder
        return
    for requirement in map(Requirement, lines):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name} is {found or 'not installed'}: pip install '{requirement}'"


def _notes(device: torch.device, found: dict[str, Any]) -> Iterator[str]:
    """What is worth knowing, and no fault."""
    if device.type == "cpu":
        yield "no CUDA device: images are made on the CPU"
    elif reasons := {reason for reason in found["levels"].values() if reason}:
        yield from sorted(reasons)
    for pid, mib in found["foreign_gpu_processes"].items():
        yield f"process {pid} uses the GPU too ({mib} MiB): times are not to be trusted"
    free = found["free_memory_mib"].get("gpu", found["free_memory_mib"]["host"])
    if free < LITTLE_MIB:
        yield f"{free} MiB are free: the full model may not fit"
    if not all(one["at_hand"] for one in found["weights"]):
        yield (
            "the real weights are not here: the first use of --source "
            "stable-diffusion-v1-5/stable-diffusion-v1-5 downloads 4.3 GB"
        )
    if find_spec("peft") is None:
        yield "no peft: --lora needs it; pip install peft"
    if find_spec("pytest_benchmark") is None:
        yield (
            "no suite: `sdopt bench` needs pip install -c constraints.txt -e '.[bench]' in a clone"
        )
    if shutil.which("git") is None:
        yield "no git: `sdopt bench --ab` needs it"


def _print(found: dict[str, Any]) -> None:
    device, auto = found["device"], found["auto"]
    free = ", ".join(f"{mib} MiB of the {name}" for name, mib in found["free_memory_mib"].items())
    runs = [name for name, reason in found["levels"].items() if reason is None]
    at_hand = [one["source"] for one in found["weights"] if one["at_hand"]]
    versions = {"sdopt": found["sdopt"], **found["versions"]}
    rows = {
        "device": f"{device['kind']}: {device['hardware']}",
        "driver": f"{device['driver'] or 'none'}, CUDA of torch: {device['cuda'] or 'none'}",
        "free memory": free,
        "compilers": ", ".join(f"{k} {v or 'none'}" for k, v in found["compiler"].items()),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items() if v),
        "weights": ", ".join(at_hand),
        "auto": f"source {auto['source']} ({auto['why']}) on {auto['device']}",
        "levels": f"{len(runs)} of {len(found['levels'])} run here",
    }
    if kernels := device.get("kernels"):
        rows["kernels"] = kernels
    for name, text in rows.items():
        print(f"{name:12s} {shown(text)}")
    for cache in found["caches"]:
        print(f"{'cache':12s} {cache['mib']:.1f} MiB {cache['name']}: {shown(cache['folder'])}")
    for note in found["notes"]:
        print(f"{'note':12s} {shown(note)}")
    for problem in found["fix"]:
        print(f"{'fix':12s} {shown(problem)}")
    if not found["fix"]:
        print("nothing to fix")
