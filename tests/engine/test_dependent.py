"""Kernels that are started while the one before ends wait first, and are so in images alone."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from sdopt.engine import dependent
from sdopt.engine.cards import H100, KNOWN
from sdopt.engine.tables import tuned
from sdopt.engine.tiles import Tile
from sdopt.tuning.jobs import computed, empty_operands, job_of_key

TILES = ("upsample 2x32x32x640-640", "float8-plain 2x16x16x2560-1280", "joined 64x2560-1280")
ROLES = ("sdopt_product", "sdopt_geglu", "sdopt_attention_specialized")
KEEPING = Tile(
    height=64, width=1, columns=64, extra=64, stages=7, specialized=True, stationary=True
)
KEYS = (*TILES, "geglu 512x1280-5120", "conv 1x512x512x64-3", "attention 2x64x64-8x160")


@pytest.mark.parametrize(
    ("version", "can"), [(12020, False), (12030, True), (13000, True), (None, True)]
)
def test_an_old_driver_launches_as_always(
    version: int | None, can: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its graphs would not keep how kernels wait."""
    monkeypatch.setattr(dependent, "driver_version", lambda: version)
    with dependent.launches(True):
        assert bool(dependent.options()) == can


@pytest.mark.parametrize(
    ("name", "can"),
    [("H100", True), ("B200", True), ("A100", False), ("H100 through pointers", False)],
)
def test_a_card_decides_and_only_within_an_image(name: str, can: bool) -> None:
    assert dict(dependent.options()) == {}
    with dependent.launches(KNOWN[name].dependent):
        wanted = {"DEPENDENT": True, "launch_pdl": True} if can else {}
        assert dict(dependent.options()) == wanted
    assert dict(dependent.options()) == {}


needs_triton = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1" or find_spec("triton") is None,
    reason="needs triton: run without TRITON_INTERPRET=1 where it is installed",
)


def half(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float16)


def small_kernels() -> None:
    """Each kernel that is not cut by a tile."""
    from sdopt.engine import launch

    launch.narrow_convolution(half(2, 64, 64, 4), half(320, 3, 3, 4), half(320))
    launch.group_norm(half(2, 8, 8, 1280), half(1280), half(1280), 32, 1e-5)
    launch.group_norm(half(2, 64, 64, 640), half(960), half(960), 32, 1e-5, x2=half(2, 64, 64, 320))
    launch.group_norm(half(1, 512, 512, 128), half(128), half(128), 32, 1e-5, silu=True)
    launch.layer_norm(half(2, 64, 320), half(320), half(320), 1e-5)
    launch.apply_epilogue(half(2, 64, 64, 320), half(320), half(2, 64, 64, 320), relu=True)
    sample = torch.empty(1, 64, 64, 4)
    launch.solver_step(half(2, 64, 64, 4), sample, sample.clone(), torch.empty(6), 2)


def tiled_kernels() -> None:
    for key in KEYS:
        job = job_of_key(key)
        computed(job, empty_operands(job), tuned()[key])
    job, other = job_of_key(TILES[0]), Tile(height=8, width=16, columns=64, stages=3, warps=8)
    for tile in (other, replace(other, pointers=True)):
        computed(job, empty_operands(job), tile)
    job = job_of_key("geglu 2048x640-2560")
    computed(job, empty_operands(job), KEEPING)
    job = job_of_key("attention 2x256x256-8x40")
    for ahead, high in ((False, 192), (True, 128)):
        tile = Tile(height=high, width=1, depth=32, extra=16, stages=2, warps=high // 16,
                    specialized=True, ahead=ahead)  # fmt: skip
        computed(job, empty_operands(job), tile)


def every_kernel() -> list[Any]:
    from sdopt.engine import proof

    with torch.no_grad(), proof.only_compiled() as found:
        small_kernels()
        tiled_kernels()
    return found


@needs_triton
def test_nothing_is_read_or_written_before_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a program end or let the next kernel start before it."""
    monkeypatch.setattr(dependent, "driver_version", lambda: None)
    from sdopt.engine import kernels, machine_code, proof

    with dependent.launches(H100.dependent):
        found = every_kernel()
    names = {kernel.metadata.name.removesuffix("_float8") for kernel in found}
    assert names == {name for name in vars(kernels) if name.startswith("sdopt_")} | {*ROLES}
    for kernel in found:
        code = machine_code.parsed(proof.disassembled(kernel.asm["cubin"]))
        bases = [one.base for one in code.instructions]
        assert {machine_code.WAIT, "PREEXIT"} <= set(bases)
        assert machine_code.hazards(code) == []
        assert kernel.metadata.launch_pdl
        # Idle warps of the specialized ones end with their program.
        idle = ["EXIT"] if kernel.metadata.name.startswith(ROLES) else []
        assert [one.base for one in machine_code.before_wait(code)] == idle


@needs_triton
def test_outside_of_an_image_they_have_no_such_instruction() -> None:
    from sdopt.engine import machine_code, proof

    found = every_kernel()
    assert len(found) > len(KEYS)
    assert not any("griddepcontrol" in kernel.asm["ptx"] for kernel in found)
    assert not any(kernel.metadata.launch_pdl for kernel in found)
    code = machine_code.parsed(proof.disassembled(found[0].asm["cubin"]))
    assert {"LDG", "STG"} <= {one.base for one in machine_code.before_wait(code)}
