"""The kernels of a launch, compiled without a GPU if need be, and races in their machine code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sdopt.engine import machine_code
from sdopt.engine.cards import HOPPER
from sdopt.errors import MissingToolError
from sdopt.util.replaced import replaced

NAMED_BY = "TRITON_NVDISASM_PATH"
"""The variable by which Triton too is told of another disassembler."""
MATRIX_UNIT = "wgmma.mma_async"
"""Its instruction in PTX, before machine code is made of it."""


class _NoDevice:
    """Triton's driver of a GPU that is not there: kernels are compiled for it, none is launched."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> str:
        """No number, which a GPU of this machine may have; kernels are kept by it."""
        return f"none of {self.capability}"

    def get_current_stream(self, device: Any = None) -> int:
        return 0


@contextmanager
def kernels_launched() -> Iterator[list[Any]]:
    """The compiled kernels, as Triton has them, of every launch inside; each once."""
    from triton.runtime.jit import JITFunction

    run = JITFunction.run
    kernels: list[Any] = []

    def noted(self: Any, *args: Any, **options: Any) -> Any:
        kernel = run(self, *args, **options)
        if kernel is not None and all(kernel is not one for one in kernels):
            kernels.append(kernel)
        return kernel

    with replaced(JITFunction, "run", noted):
        yield kernels


@contextmanager
def only_compiled(capability: int = HOPPER) -> Iterator[list[Any]]:
    """As `kernels_launched`, but launches only compile, for operands in the host's memory."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    run = JITFunction.run

    def compiled(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        return run(self, *args, grid=grid, warmup=True, **options)

    with (
        replaced(JITFunction, "run", compiled),
        replaced(driver, "_active", _NoDevice(capability)),
        kernels_launched() as kernels,
    ):
        yield kernels


def hazards(kernel: Any) -> list[machine_code.Hazard]:
    """The writes to registers in flight of a compiled kernel, on this or any machine.

    Empty for a kernel without the warp group's products, as of every architecture but Hopper.
    """
    if MATRIX_UNIT not in kernel.asm["ptx"]:
        return []
    return list(hazards_of_binary(kernel.asm["cubin"]))


@cache
def hazards_of_binary(cubin: bytes) -> tuple[machine_code.Hazard, ...]:
    """The same for a file that CUDA's tools made for one architecture."""
    return tuple(machine_code.hazards(machine_code.parsed(disassembled(cubin))))


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a compiled kernel takes of a card: registers a thread, bytes a thread that were spilled
    to memory, and bytes of shared memory a program. `copies` are the sizes in bytes of its
    asynchronous copies."""

    kernel: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    copies: frozenset[int]


def resources(kernel: Any) -> Resources:
    """Of a compiled kernel. Raises MissingToolError without a `cuobjdump` that can read it."""
    used = _read_with((str(_bundled("cuobjdump")), "-res-usage"), kernel.asm["cubin"])
    numbers = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", used)}
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?, (0x\w+)", kernel.asm["ptx"])
    return Resources(
        kernel=kernel.metadata.name,
        registers=numbers["REG"],
        spilled_bytes=numbers["STACK"] + numbers["LOCAL"],
        shared_bytes=kernel.metadata.shared,
        copies=frozenset(int(size, 16) for size in copies),
    )


def disassembled(cubin: bytes) -> str:
    """What `nvdisasm -c` prints. Raises MissingToolError where there is none for such a file."""
    return _read_with((str(disassembler()), "-c"), cubin)


def _read_with(command: tuple[str, ...], cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        answer = subprocess.run((*command, str(file)), capture_output=True, text=True, check=False)
    if answer.returncode:
        raise MissingToolError(
            f"{command[0]} cannot read this machine code: {answer.stderr.strip()[:200]}; name a "
            f"newer one, of NVIDIA's CUDA toolkit, by {NAMED_BY}"
        )
    return answer.stdout


def disassembler() -> Path:
    """The nvdisasm named to Triton, its own, or the PATH's. Raises MissingToolError without."""
    named = os.environ.get(NAMED_BY)
    if found := named or bundled_disassembler() or shutil.which("nvdisasm"):
        return Path(found)
    raise MissingToolError(
        f"nvdisasm is needed to read machine code; it is neither named by {NAMED_BY} nor in "
        "triton's package nor on the PATH: install triton for Linux or NVIDIA's CUDA toolkit"
    )


def bundled_disassembler() -> Path | None:
    """The one in triton's package, if that is installed with it."""
    return _in_triton("nvdisasm")


def _bundled(tool: str) -> Path:
    found = _in_triton(tool) or shutil.which(tool)
    if found is None:
        raise MissingToolError(
            f"{tool} is neither in triton's package nor on the PATH: install triton for Linux or "
            "NVIDIA's CUDA toolkit"
        )
    return Path(found)


def _in_triton(tool: str) -> Path | None:
    triton = find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    path = Path(triton.origin).parent / "backends/nvidia/bin" / tool
    return path if path.exists() else None
