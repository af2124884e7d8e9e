"""Kernels that begin while the one before ends: all wait first, and nobody does unless told to."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from sdopt.engine import dependent
from sdopt.engine.cards import KNOWN
from sdopt.engine.tables import tuned
from sdopt.engine.tiles import Tile
from sdopt.engine.unet import _flat, _taps
from sdopt.errors import SdoptError
from sdopt.tuning.jobs import computed, empty_operands, job_of_key

TILES = ("upsample 2x32x32x640-640", "float8-plain 2x16x16x2560-1280", "joined 64x2560-1280")
KEYS = (*TILES, "geglu 512x1280-5120", "conv 1x512x512x64-3", "attention 2x64x64-8x160")


def test_it_is_off_unless_told_and_outside_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dependent.DEPENDENT, raising=False)
    with dependent.launches(True):
        assert dependent.options("layer_norm") == {}
    monkeypatch.setenv(dependent.DEPENDENT, "1")
    assert dependent.options("layer_norm") == {}
    with dependent.launches(True):
        assert dependent.options("layer_norm") == {"DEPENDENT": 1, "launch_pdl": True}
        with dependent.launches(True, "0"):
            assert dependent.options("layer_norm") == {}
    assert dependent.options("layer_norm") == {}


@pytest.mark.parametrize(
    ("name", "can"),
    [("H100", True), ("B200", True), ("A100", False), ("H100 through pointers", False)],
)
def test_a_card_decides(name: str, can: bool) -> None:
    assert KNOWN[name].dependent == can
    assert bool(dependent.triggers(KNOWN[name].dependent, "*=late")) == can


def test_later_choices_replace_earlier_ones() -> None:
    chosen = dependent.triggers(True, "*=lets,layer_norm=early,product=off")
    assert (chosen["layer_norm"], chosen["product"]) == ((2, True), (0, False))
    assert chosen["attention"] == (4, False)


@pytest.mark.parametrize("text", ["layer_nrom=late", "*=lat", "late", "*=late,"])
def test_a_wrong_choice_is_told(text: str) -> None:
    with pytest.raises(SdoptError, match=r"layer_norm, .*late, early"):
        dependent.triggers(True, text)


def test_the_launch_behind_a_copy_of_weights_waits_for_all_of_it() -> None:
    plain = torch.nn.Conv2d(8, 8, 3).requires_grad_(False)
    last = torch.nn.Conv2d(8, 8, 3).requires_grad_(False).to(memory_format=torch.channels_last)
    one = torch.nn.Conv2d(8, 8, 1).requires_grad_(False)
    with dependent.launches(True, "*=late"):
        for read, conv, early in ((_taps, last, True), (_flat, one, True), (_taps, plain, False)):
            assert read(conv).is_contiguous()
            assert dependent.options("product") == {"DEPENDENT": 1, "launch_pdl": early}
        assert dependent.options("product")["launch_pdl"]


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


@needs_triton
@pytest.mark.parametrize("trigger", ["late", "early", "never", "bare"])
def test_nothing_but_weights_is_read_before_the_wait(trigger: str) -> None:
    """Nor is anything written, nor does a program end or let the next kernel begin before it."""
    from sdopt.engine import machine_code, proof

    with torch.no_grad(), dependent.launches(True, f"*={trigger}"), proof.only_compiled() as found:
        small_kernels()
        tiled_kernels()
    names = {kernel.metadata.name.removeprefix("sdopt_") for kernel in found}
    assert {name.removesuffix("_float8") for name in names} == set(dependent.KERNELS)
    for kernel in found:
        code = machine_code.parsed(proof.disassembled(kernel.asm["cubin"]))
        bases = [one.base for one in code.instructions]
        early = sorted(one.base for one in machine_code.before_wait(code))
        assert machine_code.WAIT in bases
        assert ("PREEXIT" in bases) == (trigger != "never")
        assert machine_code.hazards(code) == []
        assert kernel.metadata.launch_pdl
        if "product" not in kernel.metadata.name or "matrix" in kernel.metadata.name:
            assert early == []
        else:  # idle warps of the specialized one, which end with their program
            loads = early.count("UTMALDG")
            assert early == ["EXIT", *["UTMALDG"] * loads]
            assert loads in ((0,) if trigger == "bare" else (1, 2))


@needs_triton
def test_otherwise_kernels_have_no_such_instruction() -> None:
    from sdopt.engine import machine_code, proof

    with torch.no_grad(), proof.only_compiled() as found:
        small_kernels()
        tiled_kernels()
    assert len(found) > len(KEYS)
    assert not any("griddepcontrol" in kernel.asm["ptx"] for kernel in found)
    assert not any(kernel.metadata.launch_pdl for kernel in found)
    code = machine_code.parsed(proof.disassembled(found[0].asm["cubin"]))
    assert {"LDG", "STG"} <= {one.base for one in machine_code.before_wait(code)}
