"""The machine code of tiles that are stored has no race, and a tile that has one is found.

Compiled for Hopper without a GPU; `sdopt tune --static` does the same for all that the
rules can choose, in minutes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from sdopt.engine.cards import H100, KNOWN
from sdopt.engine.tables import tuned
from sdopt.engine.tiles import FLOAT8, LIBRARY, Tile
from sdopt.tuning import chosen
from sdopt.tuning.candidates import candidates
from sdopt.tuning.compiling import (
    Compilers,
    compiled,
    distinct,
    make_of,
    shares_of,
    spills,
    verdict,
)
from sdopt.tuning.jobs import computed, empty_operands, job_of_key
from sdopt.util.precision import DTYPE

if os.environ.get("TRITON_INTERPRET") == "1" or find_spec("triton") is None:
    pytest.skip(
        "needs triton: run without TRITON_INTERPRET=1 where it is installed",
        allow_module_level=True,
    )

from triton.runtime import driver
from triton.runtime.jit import JITFunction

from sdopt.cli.app import main
from sdopt.engine import launch, machine_code, proof

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

UPSAMPLE = "upsample 2x32x32x640-640"
RACING = Tile(height=8, width=16, columns=128, depth=64, stages=3, warps=8)
"""Measured on an H100: each of 196 repeats differed."""
CLEAR = Tile(height=8, width=16, columns=64, depth=64, stages=3, warps=8)
SPECIALIZED = Tile(height=2, width=32, columns=128, extra=32, stages=5, specialized=True)
STATIONARY = Tile(
    height=64, width=1, columns=128, extra=128, stages=7, specialized=True, stationary=True
)
ATTENTION = "attention 2x256x256-8x40"
ATTENDING = Tile(height=128, width=1, columns=128, depth=32, extra=16, stages=2, warps=8,
                 specialized=True, ahead=True)  # fmt: skip
"""Its weights go to the matrix unit through registers."""
SPLIT_ONLY = Tile(height=8, width=16, columns=128, depth=64, stages=4, warps=8, splits=6)
"""Clear with splits; larger batches use it without, and race."""


@pytest.fixture(scope="module")
def compilers() -> Iterator[Compilers]:
    with Compilers(2, H100) as pool:
        yield pool


def test_a_tile_that_races_is_found(compilers: Compilers) -> None:
    reason = compilers.of(job_of_key(UPSAMPLE), RACING)
    assert reason.startswith("races: in sdopt_convolution, ")
    assert "LDSM.16.M88.4" in reason
    assert "HGMMA.64x128x16.F32" in reason


def test_a_tile_that_races_only_in_larger_batches_is_found(compilers: Compilers) -> None:
    job = job_of_key("plain 2x16x16x1280-1280")
    verdicts = compilers.check([(job, shares_of(SPLIT_ONLY))])
    split, whole = (verdicts[make_of(job, tile)] for tile in shares_of(SPLIT_ONLY))
    assert split == ""
    assert whole.startswith("races: ")
    assert compilers.of(job, SPLIT_ONLY).startswith("races: ")


@pytest.mark.parametrize("tile", [CLEAR, SPECIALIZED], ids=["plain", "specialized"])
def test_a_tile_without_a_race_is_clear(tile: Tile, compilers: Compilers) -> None:
    assert compilers.of(job_of_key(UPSAMPLE), tile) == ""


def test_stored_tiles_have_no_race(compilers: Compilers) -> None:
    """As they are used most; `--static` compiles every other epilogue too."""
    jobs = [(job_of_key(key), tile) for key, tile in tuned().items() if not tile.library]
    work = [(job, shares_of(tile)) for job, tile in jobs]
    done: list[int] = []
    verdicts = compilers.check(work, lambda: done.append(1))
    races = {
        f"{job.key}, {share.splits} splits": reason
        for job, tiles in work
        for share in tiles
        if (reason := verdicts[make_of(job, share)])
    }
    assert races == {}
    assert len(distinct(work)) > 20
    assert 0 < len(done) <= len(distinct(work))  # less what other tests compiled


def test_all_roles_of_a_specialized_kernel_are_followed() -> None:
    """They are reached by a computed jump."""
    job = job_of_key(UPSAMPLE)
    with proof.only_compiled() as kernels:
        computed(job, empty_operands(job), SPECIALIZED)
    code = machine_code.parsed(proof.disassembled(kernels[0].asm["cubin"]))
    reached = machine_code.in_flight(code)
    products = [at for at, one in enumerate(code.instructions) if one.base == "HGMMA"]
    assert len(products) == 16
    assert set(products) <= set(reached)
    left = [one for at, one in enumerate(code.instructions) if at not in reached]
    assert {one.base for one in left} <= {"NOP", "BRA"}  # behind the end
    assert all(reached[at] for at in products[1:8])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("key", ["geglu 8192x320-1280", "geglu 2048x640-2560"])
def test_weights_that_stay_have_no_race_and_room(
    key: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that are timed. Values and gates are one product, and sums stay in registers."""
    monkeypatch.setenv(DTYPE, dtype)
    job = job_of_key(key)
    tiles = [tile for tile in candidates(job) if tile.stationary]
    assert len({tile.columns for tile in tiles}) == (1 if "x640" in key else 2)
    for tile in tiles:
        with proof.only_compiled() as kernels:
            computed(job, empty_operands(job), tile)
        reason, taken = compiled(job, tile, H100)
        assert (reason, spills(taken)) == ("", "")
        assert taken[0].shared_bytes <= tile.stationary_bytes(job.first_two[1][-1])
        code = machine_code.parsed(proof.disassembled(kernels[0].asm["cubin"]))
        assert len(code.products) == 2 * 4 * tile.pixels // 64
        assert {f".64x{2 * tile.columns}x16.F32" in one.rest for one in code.products} == {True}
        reached = (code.instructions[at] for at in machine_code.in_flight(code))
        assert set(code.products) <= set(reached)


@pytest.mark.parametrize(
    "key", ["linear 8192x320-1280", "conv 2x64x64x320-320", "float8-geglu 8192x320-1280"]
)
def test_weights_stay_for_geglu_alone(key: str) -> None:
    assert "weights stay for GEGLU alone" in verdict(job_of_key(key), STATIONARY, H100)


@pytest.mark.parametrize("key", ["geglu 512x1280-5120", "geglu 64x320-1344", "geglu 64x96-128"])
def test_weights_that_do_not_fit_are_told(key: str) -> None:
    assert "columns do not stay in" in verdict(job_of_key(key), STATIONARY, H100)


def test_weights_that_stay_are_compiled_for_their_length() -> None:
    makes = {
        make_of(job_of_key(f"geglu {m}x{k}-640"), STATIONARY) for m in (64, 128) for k in (64, 128)
    }
    assert len(makes) == 2


@pytest.mark.parametrize("high", [128, 192])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("polynomial", [0, 8, 16])
def test_specialized_attention_overlaps_and_has_no_race(
    high: int, ahead: bool, polynomial: int
) -> None:
    """ptxas waits for each product of a kernel that it does not understand; here for few."""
    job, columns = job_of_key(ATTENTION), 64 if high == 192 else 128
    tile = replace(
        ATTENDING, height=high, columns=columns, warps=high // 16, ahead=ahead,
        polynomial=polynomial,
    )  # fmt: skip
    with proof.only_compiled() as kernels:
        computed(job, empty_operands(job), tile)
    code = machine_code.parsed(proof.disassembled(kernels[0].asm["cubin"]))
    reached = machine_code.in_flight(code)
    products = [at for at, one in enumerate(code.instructions) if one.base == "HGMMA"]
    assert set(products) <= set(reached)
    assert machine_code.hazards(code) == []
    waits = [one for one in code.instructions if one.name == "WARPGROUP.DEPBAR.LE"]
    assert 3 * len(waits) < len(products)
    weights = [one for one in code.products if machine_code.read(one)]
    assert {one.rest.split(".")[1] for one in weights} == {"64x32x16", "64x16x16"}
    assert proof.resources(kernels[0]).spilled_bytes == 0


def test_all_uses_of_a_specialized_attention_are_clear(compilers: Compilers) -> None:
    """Causal attention with such a tile is computed by another kernel."""
    assert compilers.of(job_of_key(ATTENTION), ATTENDING) == ""
    assert {one.kernel for taken in compilers.taken.values() for one in taken} >= {
        "sdopt_attention",
        "sdopt_attention_specialized",
    }


@pytest.mark.parametrize(
    ("tile", "reason"),
    [
        (replace(ATTENDING, columns=256, ahead=False), "128 keys are no multiple of 256"),
        (replace(ATTENDING, ahead=False, depth=16), "heads of 40 entries are more than 16 + 16"),
    ],
)
def test_specialized_attention_refuses_what_it_would_compute_wrong(tile: Tile, reason: str) -> None:
    found = verdict(job_of_key("attention 2x256x128-8x40"), tile, H100)
    assert found == f"does not compile: {reason}"


@pytest.mark.parametrize("channels", [1, 4])
def test_the_product_without_a_tile_has_no_race(channels: int) -> None:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float16)

    with proof.only_compiled() as kernels:
        launch.narrow_convolution(empty(2, 8, 8, channels), empty(320, 3, 3, channels), empty(320))
    assert [kernel.metadata.name for kernel in kernels] == ["sdopt_narrow_convolution"]
    assert proof.MATRIX_UNIT in kernels[0].asm["ptx"]
    assert proof.hazards(kernels[0]) == []


@pytest.mark.parametrize(("card", "pointers"), [("A100", True), ("B200", False)])
def test_other_architectures_have_no_such_products(card: str, pointers: bool) -> None:
    tile = replace(RACING, pointers=pointers)
    assert verdict(job_of_key(UPSAMPLE), tile, KNOWN[card]) == ""


@pytest.mark.parametrize("name", ["A100", "B200", "RTX 5090"])
def test_an_image_by_rule_fits_cards_that_are_not_here(name: str) -> None:
    """Shared memory, registers, and 16 bytes a copy; `--static --cards` does it for all shapes."""
    card = KNOWN[name]
    jobs = [job_of_key(key) for key in tuned()]
    work = [(job, [tile]) for job in jobs if not (tile := chosen.ruled(job, card)).library]
    with Compilers(2, card) as compilers:
        verdicts = compilers.check(work)
    reasons = {f"{job.key}: {verdicts[make_of(job, tile)]}" for job, [tile] in work}
    assert {reason for reason in reasons if not reason.endswith(": ")} == set()
    assert [why for taken in compilers.taken.values() if (why := spills(taken))] == []
    assert len(compilers.taken) > 10


@pytest.mark.parametrize(
    ("name", "tile"),
    [
        ("A100", Tile(columns=64, stages=3, pointers=True)),
        ("H100", CLEAR),
        ("H100", SPECIALIZED),
        ("H100", ATTENDING),
        ("H100", RACING),
    ],
    ids=["pointers", "descriptors", "specialized", "attention", "racing"],
)
def test_bfloat16_is_another_kernel_with_the_same_needs(
    name: str, tile: Tile, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, found = job_of_key(ATTENTION if tile is ATTENDING else UPSAMPLE), {}
    for dtype in ("float16", "bfloat16"):
        monkeypatch.setenv(DTYPE, dtype)
        with proof.only_compiled(KNOWN[name].capability) as kernels:
            computed(job, empty_operands(job), tile)
        assert ("bf16" in kernels[0].asm["ptx"]) == (dtype == "bfloat16")
        reason, [taken] = compiled(job, tile, KNOWN[name])
        found[dtype] = (reason.split(":")[0], taken.shared_bytes, taken.copies)
    assert found["float16"] == found["bfloat16"]


@pytest.mark.parametrize("card", ["A100", "H100"])
def test_relu_keeps_what_is_no_number(card: str) -> None:
    """An overflow has to be seen in the image; the interpreter's maximum keeps NaN in any case."""
    x = torch.empty((1, 8, 8, 64), dtype=torch.float16)
    weight = torch.empty((64, 3, 3, 64), dtype=torch.float16)
    with proof.only_compiled(KNOWN[card].capability) as kernels:
        launch.apply_epilogue(x, None, None, relu=True)
        launch.convolution(x, weight, None, Tile(pointers=card == "A100"), relu=True)
        if card == "H100":
            launch.convolution(x, weight, None, SPECIALIZED, relu=True)
    for kernel in kernels:
        assert "max.NaN.f32" in kernel.asm["ptx"]
        assert "max.f32" not in kernel.asm["ptx"]


@pytest.mark.parametrize("key", ["conv 2x32x32x640-640", "geglu 512x640-640"])
def test_products_in_float8_are_rounded_to_the_model_s_dtype(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of_key(FLOAT8 + key)
    for dtype in ("float16", "bfloat16"):
        monkeypatch.setenv(DTYPE, dtype)
        with proof.only_compiled() as kernels:
            found = computed(job, empty_operands(job), chosen.ruled(job, H100))
        assert found.dtype == getattr(torch, dtype)
        assert [proof.hazards(kernel) for kernel in kernels] == [[]]


@pytest.mark.parametrize(
    ("tile", "reason"),
    [
        (Tile(columns=256, warps=8, stages=5, pointers=True), "too large: "),
        (Tile(columns=64, stages=3, pointers=True), ""),
        (Tile(columns=128, stages=3, warps=8), "narrow: asynchronous copies of no bytes"),
    ],
    ids=["large", "fits", "descriptors"],
)
def test_what_an_a100_has_no_room_or_no_accelerator_for_is_found(tile: Tile, reason: str) -> None:
    found = verdict(job_of_key("conv 2x64x64x320-320"), tile, KNOWN["A100"])
    assert found.startswith(reason) if reason else found == ""


def test_sums_that_are_kept_in_memory_are_found() -> None:
    tile = Tile(columns=256, warps=4, stages=2, pointers=True)
    _, taken = compiled(job_of_key("conv 2x64x64x320-320"), tile, KNOWN["A100"])
    assert spills(taken).startswith("spills: ")


def test_a_tile_that_does_not_compile_is_told() -> None:
    reason = verdict(job_of_key("linear 64x64-64"), Tile(height=64, width=1, columns=24), H100)
    assert reason.startswith("does not compile: ")


def test_every_kernel_of_a_launch_is_seen_and_triton_is_as_before() -> None:
    before = driver._active, JITFunction.run
    job = job_of_key("linear 512x640-640")
    with proof.only_compiled() as kernels:
        for _ in range(2):
            computed(job, empty_operands(job), Tile(height=64, width=1, splits=2))
    assert [kernel.metadata.name for kernel in kernels] == [
        "sdopt_matrix_product",
        "sdopt_sum_splits",
    ]
    assert all(proof.hazards(kernel) == [] for kernel in kernels)
    assert (driver._active, JITFunction.run) == before


@pytest.mark.parametrize(("tile", "code"), [(CLEAR, 0), (RACING, 1)], ids=["clear", "racing"])
def test_the_command_names_what_races(
    tile: Tile,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "tuned.json"
    tiles = {UPSAMPLE: asdict(tile), "linear 512x640-640": asdict(LIBRARY)}
    path.write_text(json.dumps({"tiles": tiles, "measured": {}}))
    before = path.read_bytes()
    monkeypatch.setattr(chosen, "by_rule", lambda card: ())
    assert main(["tune", "--static", "--processes", "2", "--out", str(path)]) == code
    told = capsys.readouterr().out
    assert (f"{UPSAMPLE}: {tile} races: in sdopt_convolution" in told) == (code == 1)
    assert ("2 kernels: races" if code else "2 kernels: clear") in told
    assert path.read_bytes() == before
