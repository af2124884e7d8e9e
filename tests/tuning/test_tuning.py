"""Which tiles are timed, which kernels that takes, and what the table of them refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch

from sdopt.cli.app import main
from sdopt.engine.cards import H100, KNOWN
from sdopt.engine.tables import shipped_table, tuned
from sdopt.engine.tiles import FLOAT8, LIBRARY, Tile
from sdopt.errors import BrokenFileError, BusyError, SdoptError
from sdopt.tuning import choosing, programs, repeats, timing
from sdopt.tuning.candidates import SHARED_BYTES, attention_bytes, candidates, near
from sdopt.tuning.chosen import by_rule, stored, together, used
from sdopt.tuning.compiling import Compilers, distinct, make_of, shares_of
from sdopt.tuning.jobs import (
    CONVOLUTIONS,
    PRODUCTS,
    Job,
    job_of_key,
    jobs_of_levels,
    random_operands,
    uses_of,
)
from sdopt.tuning.repeats import Proof
from sdopt.tuning.table import read_table, row, write_table
from sdopt.util.places import TILES
from sdopt.util.precision import DTYPE
from sdopt.util.writing import writing

CONVOLUTION = Job(
    key="conv 2x64x64x320-320",
    shapes=((2, 64, 64, 320), (320, 3, 3, 320), (320,), (2, 64, 64, 320)),
)
UPSAMPLE = Job(
    key="upsample 2x8x8x1280-1280", shapes=((2, 8, 8, 1280), (4 * 1280, 2, 2, 1280), (1280,))
)
NARROW = Job(key="conv 1x512x512x128-3", shapes=((1, 512, 512, 128), (3, 3, 3, 128), (3,), None))
LINEAR = Job(
    key="linear 512x5120-1280", shapes=((512, 5120), (1280, 5120), (1280,), None, (512, 1280))
)
GEGLU = Job(key="geglu 8192x320-1280", shapes=((8192, 320), (2560, 320), (2560,)))
SHIPPED = shipped_table(H100)
UNSPECIALIZED = replace(H100, specialized=False)
JOBS = (CONVOLUTION, UPSAMPLE, NARROW, LINEAR, GEGLU)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.kind)
def test_candidates_are_many_different_tiles_that_fit_the_matrix_unit(job: Job) -> None:
    tiles = candidates(job)
    assert len(set(tiles)) == len(tiles) > 1
    assert all(tile.pixels in (64, 128, 256) and tile.splits >= 1 for tile in tiles)
    assert not any(tile.library for tile in tiles)
    assert not any(tile.specialized for tile in candidates(job, UNSPECIALIZED))


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.kind)
def test_specialized_candidates_have_two_boxes_in_shared_memory_and_a_sum_in_registers(
    job: Job,
) -> None:
    tiles = [tile for tile in candidates(job) if tile.specialized and not tile.stationary]
    assert bool(tiles) == (job is not NARROW)
    for tile in tiles:
        across = tile.columns + tile.extra
        assert tile.stages * 2 * tile.depth * (2 * tile.pixels + across) <= SHARED_BYTES
        assert 3 <= tile.stages <= 8
        assert tile.pixels * across <= 128 * 128
        assert tile.pixels in (64, 128)
        assert job.kind != "geglu" or tile.extra == tile.columns


def specialized(
    box: tuple[int, int, int], columns: int, extra: int, stages: int, splits: int
) -> Tile:
    return Tile(
        images=box[0], height=box[1], width=box[2], columns=columns, extra=extra, stages=stages,
        splits=splits, specialized=True,
    )  # fmt: skip


def test_boxes_and_cuts_that_were_worth_timing_are_candidates() -> None:
    assert specialized((1, 2, 32), 128, 32, 5, 1) in candidates(CONVOLUTION)
    assert specialized((1, 8, 8), 64, 0, 8, 1) in candidates(UPSAMPLE)
    assert specialized((1, 64, 1), 128, 128, 4, 1) in candidates(GEGLU)
    assert specialized((1, 64, 1), 64, 0, 8, 1) in candidates(LINEAR)
    small = job_of_key("plain 2x8x8x2560-1280")
    assert specialized((1, 8, 8), 64, 0, 8, 6) in candidates(small)
    large = job_of_key("conv 1x512x512x128-128")
    assert {one.pixels for one in candidates(large) if one.specialized} == {64, 128}


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("geglu 8192x320-1280", [(64, 128, 7), (64, 64, 8), (128, 64, 8)]),
        ("geglu 65536x320-1280", [(64, 128, 7), (64, 64, 8), (128, 64, 8)]),
        ("geglu 1024x640-2560", [(64, 64, 7), (128, 64, 3)]),
        ("geglu 512x1280-5120", []),
        ("geglu 64x320-40", []),
        ("linear 8192x320-1280", []),
        (FLOAT8 + "geglu 8192x320-1280", []),
    ],
)
def test_weights_stay_in_all_the_room_there_is(key: str, found: list[tuple[int, int, int]]) -> None:
    tiles = [tile for tile in candidates(job_of_key(key)) if tile.stationary]
    assert [(tile.pixels, tile.columns, tile.stages) for tile in tiles] == found
    for tile in tiles:
        assert tile.keeps(job_of_key(key).first_two[1][-1], job_of_key(key).columns, 232_448)
    assert not any(tile.stationary for tile in candidates(job_of_key(key), UNSPECIALIZED))


def test_sums_are_split_only_where_programs_are_few() -> None:
    assert {tile.splits for tile in candidates(UPSAMPLE)} == {1}
    assert {tile.splits for tile in candidates(GEGLU)} == {1}
    assert max(tile.splits for tile in candidates(LINEAR)) > 1


def test_widths_of_stable_diffusion_may_be_cut_by_160() -> None:
    assert {tile.extra for tile in candidates(CONVOLUTION)} == {0, 32}
    assert {tile.extra for tile in candidates(NARROW)} == {0}


def test_few_columns_get_narrow_tiles() -> None:
    assert {tile.columns for tile in candidates(NARROW)} == {16}


def test_arithmetic_is_a_multiplication_and_an_addition_for_each_weight_and_pixel() -> None:
    assert CONVOLUTION.flop == 2 * 2 * 64 * 64 * 320 * 320 * 9
    assert UPSAMPLE.flop == 2 * 2 * 8 * 8 * 1280 * 1280 * 4 * 4


def test_attention_is_cut_by_tokens_and_keys() -> None:
    prompt = Job(
        key="attention 2x4096x77-8x40", shapes=((2, 4096, 320), (2, 77, 320), (2, 77, 320))
    )
    assert prompt.heads == 8
    assert prompt.flop == 2 * 2 * (2 * 4096 * 77 * 320)
    assert {tile.columns for tile in candidates(prompt)} == {32, 64, 128}
    assert {tile.stages for tile in candidates(prompt) if tile.columns == 128} == {1}
    few = Job(key="attention 1x16x16-8x160", shapes=((1, 16, 1280), (1, 16, 1280), (1, 16, 1280)))
    assert {(tile.height, tile.columns) for tile in candidates(few)} == {(32, 16), (64, 16)}


def test_attention_among_an_image_s_tokens_may_be_specialized() -> None:
    found = {}
    for key in ("2x4096x4096-8x40", "2x1024x1024-8x80", "2x256x256-8x160", "2x64x64-8x160"):
        job = job_of_key(f"attention {key}")
        found[key] = [tile for tile in candidates(job) if tile.specialized]
        assert not any(tile.specialized for tile in candidates(job, KNOWN["A100"]))
        for tile in found[key]:
            assert attention_bytes(tile) <= SHARED_BYTES
            assert job.first_two[1][1] % (tile.columns * (1 + tile.ahead)) == 0
            assert tile.depth + tile.extra >= job.columns // job.heads
            assert tile.height * 4 // tile.warps in (64, 128)
    parts = {key: {(tile.depth, tile.extra) for tile in tiles} for key, tiles in found.items()}
    assert parts == {
        "2x4096x4096-8x40": {(32, 16), (64, 0)},
        "2x1024x1024-8x80": {(64, 16), (128, 0)},
        "2x256x256-8x160": {(128, 32)},
        "2x64x64-8x160": set(),
    }
    assert {(tile.height, tile.warps) for tile in found["2x4096x4096-8x40"]} == {
        (128, 8), (256, 8), (192, 12)
    }  # fmt: skip
    assert {(tile.ahead, tile.polynomial) for tile in found["2x4096x4096-8x40"]} == {
        (False, 0), (False, 8), (False, 16), (True, 0), (True, 8), (True, 16)
    }  # fmt: skip
    prompt = candidates(job_of_key("attention 2x4096x77-8x40"))
    assert not any(tile.specialized for tile in prompt)


def test_an_operation_without_a_weight_is_named() -> None:
    with pytest.raises(ValueError, match="conv broken: an operation has an input and a weight"):
        Job(key="conv broken", shapes=((1, 8, 8, 8), None)).first_two  # noqa: B018


def test_a_kernel_is_compiled_once_for_all_shapes_that_share_it() -> None:
    other = Job(
        key="conv 1x64x64x640-320",
        shapes=((1, 64, 64, 640), (320, 3, 3, 640), (320,), (1, 64, 64, 640)),
    )
    both = [(job, candidates(job)) for job in (CONVOLUTION, other)]
    alone = {tile for _, tiles in distinct(both[:1]) for tile in tiles}
    again = [tile for job, tiles in distinct([both[0], both[0]]) for tile in tiles]
    assert set(again) == alone
    assert len(again) == len(alone)
    added = [tile for job, tiles in distinct(both) if job is other for tile in tiles]
    assert len(added) < len(candidates(other))


def test_a_few_kernels_of_one_operation_are_compiled_together() -> None:
    tiles = candidates(CONVOLUTION, UNSPECIALIZED)
    parts = distinct([(CONVOLUTION, tiles), (LINEAR, [Tile(columns=128, splits=2)])])
    assert all(1 <= len(part) <= 8 for _, part in parts)
    assert parts[-1] == (LINEAR, [Tile(columns=128, splits=2)])


def test_the_operations_of_an_image_are_found_by_generating_one() -> None:
    jobs = jobs_of_levels(["turbo"], "embedded")
    assert {*CONVOLUTIONS, *PRODUCTS, "geglu", "attention"} == {job.kind for job in jobs}
    assert len({job.key for job in jobs}) == len(jobs)
    assert all(candidates(job) for job in jobs)


def test_batches_and_sizes_have_shapes_of_their_own() -> None:
    """turbo calls the UNet with each image twice while it guides, and once afterwards."""
    jobs = jobs_of_levels(["turbo"], "embedded", images=(1, 3), sizes=((128, 128), (128, 64)))
    inputs = {job.first_two[0][:3] for job in jobs if job.kind == "conv"}
    assert inputs >= {(n, h, w) for n in (1, 2, 3, 6) for h, w in ((16, 16), (8, 16))}


def test_a_batch_may_be_tried_with_the_tiles_of_other_shapes_alone() -> None:
    job = job_of_key("conv 8x64x64x320-320")
    possible = candidates(job)
    split = replace(next(tile for tile in possible if tile.splits == 1), splits=4)
    products = {key: tile for key, tile in tuned(H100).items() if "conv" not in key}
    found = near(job, {**products, "conv 2x64x64x320-320": split}, possible)
    assert found == [replace(split, splits=1)]
    assert near(job, products, possible) == possible
    shipped = near(job, tuned(H100), possible)
    assert 1 < len(shipped) < len(possible) / 3
    assert set(shipped) < set(possible)


def test_the_tile_that_a_shape_has_is_its_own_or_that_of_fewer_images() -> None:
    table = tuned(H100)
    assert {key: used(job_of_key(key), H100) for key in table} == table
    more = used(job_of_key("float8-plain 32x16x16x1280-1280"), H100)
    assert more == replace(table["float8-plain 2x16x16x1280-1280"], splits=1)
    assert used(job_of_key("attention 2x5000x5000-8x40"), H100).library


def test_products_with_and_without_a_residual_share_their_tiles() -> None:
    job = job_of_key("added 8192x640-640")
    tile = candidates(job)[0]
    assert near(job, {"linear 2048x640-640": tile}, candidates(job)) == [tile]
    assert near(job, {"joined 2048x640-640": tile}, candidates(job)) == candidates(job)


def test_a_row_tells_the_shape_both_times_and_the_cut() -> None:
    tile = Tile(height=8, width=16, columns=128, extra=32, splits=2)
    found = {"us": 37.2, "tflops": 406.0, "library_us": 38.5, "own_us": 37.2, "own": vars(tile)}
    line = row("conv 2x64x64x320-320", found)
    assert line.startswith("conv 2x64x64x320-320")
    assert "library     38.5" in line
    assert "1x8x16x128+32x64 s4 w4 /2" in line
    keeping = next(tile for tile in candidates(GEGLU) if tile.stationary)
    line = row(GEGLU.key, {**found, "own": vars(keeping)})
    assert "1x64x1x128+128x64 s7 weights stay /1" in line


@pytest.mark.parametrize("content", ["", "[]", '{"tiles": {}}'])
def test_a_file_that_is_no_table_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(content)
    with pytest.raises(BrokenFileError, match="measure one with `sdopt tune` and no other option"):
        read_table(path)
    assert path.read_text() == content


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
@pytest.mark.parametrize("option", ["--known", "--missing"])
def test_without_a_gpu_nothing_is_started_and_nothing_written(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tuned.json"
    path.write_bytes(SHIPPED.read_bytes())
    assert main(["tune", option, "--out", str(path)]) == 2
    assert "measured on a CUDA device, and there is none" in capsys.readouterr().err
    assert path.read_bytes() == SHIPPED.read_bytes()


def test_a_table_is_not_measured_anew_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(programs, "this_card", lambda: H100)
    path = tmp_path / "tuned.json"
    path.write_text("{}")
    assert main(["tune", "--out", str(path)]) == 2
    assert f"{path} is there already; name another file, or give --force" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--known", "--prove"), "--known and --prove do not go together"),
        (("--processes", "0"), "--processes is 0; give 1 or more"),
        (("--seconds", "nan"), "--seconds is nan; give more than 0"),
        (("--levels", "hoistde"), "unknown level 'hoistde' (did you mean 'hoisted'?)"),
        (
            ("--static", "--cards", "A1000"),
            "unknown card of --cards 'A1000' (did you mean 'A100'?)",
        ),
        (("--static", "--cards", "A100,"), "unknown card of --cards ''; choose from: A100, "),
        (("--cards", "A100"), "--cards is for --static alone"),
    ],
)
def test_a_mistake_in_the_arguments_is_named(
    arguments: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", *arguments]) == 2
    assert f"error: {reason}" in capsys.readouterr().err


def test_a_table_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "--known", "--out", str(tmp_path / "none.json")]) == 2
    assert "none.json cannot be read" in capsys.readouterr().err


def test_the_shipped_table_says_how_each_of_its_tiles_was_proved() -> None:
    """All or none: one proof missing is a tile put in by hand."""
    table = read_table(SHIPPED)
    own = {key for key, tile in tuned().items() if not tile.library}
    proofs = table.get("proof", {})
    assert set(proofs) in (own, set())
    for key, fields in proofs.items():
        numbers = {name: fields[name] for name in GOOD.fields()}
        assert Proof(**numbers, float8=key.startswith(FLOAT8)).passed, key
        assert numbers["repeats"] == repeats.REPEATS
        assert {"card", "torch", "triton", "driver", "date"} <= set(fields)


def test_the_shipped_table_can_be_continued() -> None:
    table = read_table(SHIPPED)
    assert set(table["tiles"]) == set(table["measured"])
    assert "conv 2x64x64x320-320" in table["tiles"]


@pytest.mark.parametrize("key", tuned())
def test_a_key_of_the_table_names_an_operation_with_operands(key: str) -> None:
    job = job_of_key(key)
    assert job.key == key
    assert job.columns == int(key.rsplit("-")[-1].split("x")[-1]) * (
        job.heads if job.kind == "attention" else 1
    )
    uses = list(uses_of(job))
    assert len({make_of(use, Tile()) for use in uses}) == len(uses) >= 1
    assert job in uses
    x, weight = job.first_two
    if job.kind == "joined":
        second = job.shapes[3]
        assert second is not None
        assert x[1] + second[1] == weight[1]
        assert second[1] % 8 == 0


def test_a_tile_is_used_with_every_epilogue_and_without_splits_too() -> None:
    uses = [(use.shapes[2:], use.relu) for use in uses_of(job_of_key(CONVOLUTION.key))]
    bias, residual = (320,), (2, 64, 64, 320)
    assert ((None, None), False) in uses  # a plain one without a tile of its own
    assert ((bias, residual), True) in uses
    assert len(uses) == 6
    assert {use.causal for use in uses_of(job_of_key("attention 2x64x64-8x40"))} == {False, True}
    assert {use.causal for use in uses_of(job_of_key("attention 2x64x77-8x40"))} == {False}
    split = Tile(splits=6)
    assert shares_of(split) == (split, Tile())
    assert shares_of(Tile()) == (Tile(),)


def test_a_product_with_a_residual_has_its_own_tile_and_the_kernels_of_one_without() -> None:
    job = job_of_key("added 512x1280-1280")
    assert [use.shapes[2:] for use in uses_of(job)] == [
        (None, None, (512, 1280)),
        ((1280,), None, (512, 1280)),
    ]
    of_linear = {make_of(use, FAST) for use in uses_of(job_of_key("linear 512x1280-1280"))}
    assert {make_of(use, FAST) for use in uses_of(job)} < of_linear


def test_sums_of_split_tiles_share_a_kernel_whatever_they_end_with() -> None:
    uses = list(uses_of(job_of_key(LINEAR.key)))
    assert len({make_of(use, Tile(splits=2)) for use in uses}) == 1
    assert make_of(uses[0], Tile(splits=2)) == make_of(uses[0], Tile(splits=6))
    assert make_of(uses[0], Tile(splits=2)) != make_of(uses[0], Tile(splits=1))


def test_what_can_be_chosen_is_every_stored_tile_and_every_rule() -> None:
    table = {"conv 2x16x16x1280-1280": Tile(splits=6), "linear 8x64-64": LIBRARY}
    known = list(stored(table))
    assert {tile.splits for _, tile in known} == {6, 1}
    assert {job.key for job, _ in known} == {"conv 2x16x16x1280-1280"}
    grouped = together(by_rule())
    makes = [make_of(job, tile) for job, tiles in grouped for tile in tiles]
    assert len(set(makes)) == len(makes)
    kinds = {*CONVOLUTIONS, *PRODUCTS, "geglu", "attention"} - {"added"}  # a linear one's kernels
    assert {job.kind for job, _ in grouped} == kinds
    assert any(tile.specialized for _, tiles in grouped for tile in tiles)


FAST, SLOW = Tile(columns=128), Tile(columns=64)
TIMES = {LIBRARY: 30.0, SLOW: 20.0, FAST: 10.0}
GOOD = Proof(repeats=200, differing=0, error=2.1e-4, library_error=2.0e-4)
DIFFERS = Proof(repeats=200, differing=3, error=2.1e-4, library_error=2.0e-4)
WRONG = Proof(repeats=200, differing=0, error=4.1e-3, library_error=2.0e-4)
NOTHING = Proof(repeats=200, differing=0, error=float("nan"), library_error=2.0e-4)


def chosen(
    races: dict[Tile, str], proofs: dict[Tile, Proof], times: dict[Tile, float] = TIMES
) -> tuple[Tile, Proof | None, list[str]]:
    told: list[str] = []
    tile, proof = choosing.chosen(
        times, lambda one: races.get(one, ""), lambda one: proofs.get(one, GOOD), told.append
    )
    return tile, proof, told


def test_the_fastest_tile_is_stored_if_it_is_proved() -> None:
    assert chosen({}, {}) == (FAST, GOOD, [])


@pytest.mark.parametrize("proof", [DIFFERS, WRONG, NOTHING], ids=["differs", "wrong", "NaN"])
def test_a_tile_that_fails_its_proof_is_left_out_by_name(proof: Proof) -> None:
    tile, own, (told,) = chosen({}, {FAST: proof})
    assert (tile, own) == (SLOW, GOOD)
    assert "columns=128" in told
    assert f"{proof.differing} of 200 repeats differ" in told
    assert chosen({}, {FAST: proof, SLOW: proof})[:2] == (LIBRARY, None)


def test_a_tile_with_a_race_in_another_use_is_not_even_repeated() -> None:
    tile, own, (told,) = chosen({FAST: "races: in convolution"}, {FAST: GOOD})
    assert (tile, own) == (SLOW, GOOD)
    assert "left out: races: in convolution" in told


def test_a_library_that_is_faster_needs_no_proof() -> None:
    assert chosen({}, {}, {LIBRARY: 5.0, FAST: 10.0}) == (LIBRARY, None, [])
    assert chosen({}, {}, {LIBRARY: 5.0}) == (LIBRARY, None, [])


def test_a_tile_with_a_race_is_not_timed(capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = {make_of(LINEAR, FAST): "races: it does", make_of(LINEAR, SLOW): ""}
    assert choosing.clear_tiles(LINEAR, [FAST, SLOW], verdicts) == [SLOW]
    told = capsys.readouterr().err
    assert told.startswith("linear 512x5120-1280: 1 of 2 tiles are not timed: Tile(")
    assert "columns=128" in told
    assert "races: it does" in told


class NothingRaces:
    """Compilers whose every kernel is clear, but one in another use than the timed one."""

    racing = Tile(columns=256)

    def __init__(self) -> None:
        self.asked: list[Tile] = []

    def check(self, work: Iterable[tuple[Job, Sequence[Tile]]]) -> dict[object, str]:
        every = [(job, tile) for job, tiles in work for tile in tiles]
        self.asked += [tile for _, tile in every]
        return {make_of(job, tile): "" for job, tile in every}

    def of(self, job: Job, tile: Tile) -> str:
        return "races: it does" if tile == self.racing else ""


def test_each_operation_is_timed_then_checked_and_proved_until_one_tile_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    us = {LIBRARY: 40.0, NothingRaces.racing: 10.0, FAST: 20.0, SLOW: 30.0, Tile(columns=16): 1.0}
    proofs = {FAST: WRONG, SLOW: GOOD}
    monkeypatch.setattr(choosing, "operation", lambda job, device: None)
    monkeypatch.setattr(choosing, "try_tile", lambda _, tile: "too large" * (tile.columns == 16))
    monkeypatch.setattr(choosing, "time_us", lambda _, tile: us[tile])
    monkeypatch.setattr(choosing, "times_us", lambda _, tiles: {one: us[one] for one in tiles})
    monkeypatch.setattr(choosing, "prove", lambda job, tile, device: proofs[tile])
    compilers: Any = NothingRaces()
    tiles = [tile for tile in us if not tile.library]
    found = choosing.tune([LINEAR, GEGLU], inf, lambda _: tiles, compilers, {"card": "a card"})
    assert set(found) == {LINEAR.key, GEGLU.key}
    one = found[LINEAR.key]
    assert Tile(**one["tile"]) == SLOW
    assert (one["us"], one["library_us"], one["own_us"]) == (30.0, 40.0, 10.0)
    assert one["proof"] == {**GOOD.fields(), "card": "a card"}
    assert compilers.asked.count(NothingRaces.racing) > 2  # with its other uses
    told = capsys.readouterr().out
    assert told.count("is left out: races: it does") == 2
    assert told.count("is left out: 0 of 200 repeats differ") == 2
    assert choosing.tune([LINEAR], 0, lambda _: tiles, compilers, {}) == {}


def test_only_the_fastest_tiles_are_timed_in_full() -> None:
    tiles = [Tile(columns=16 * number) for number in range(1, 21)]
    rounds: list[tuple[int, int]] = []

    def time_one(compute: object, tile: Tile, times: int) -> float:
        rounds.append((tile.columns, times))
        return float(tile.columns)

    found = timing.times_us(lambda *_: None, tiles, time_one)
    assert list(found) == tiles
    again = [columns for columns, times in rounds if times > 1]
    assert again == [16 * number for number in range(1, timing.MOST_TWICE + 1)]


def test_memory_is_full_of_nan_for_a_proof() -> None:
    was = torch.are_deterministic_algorithms_enabled()
    with repeats.poisoned_memory():
        for made in (torch.empty(99), torch.ones(2).half().new_empty((3, 5))):
            assert bool(made.isnan().all())
    assert torch.are_deterministic_algorithms_enabled() == was


X = torch.linspace(-1, 1, 64, dtype=torch.float16)


def unsteady(every: int) -> Callable[[], torch.Tensor]:
    """A result of which one bit differs every so many times."""
    times = iter(range(10**6))

    def compute() -> torch.Tensor:
        result = X.clone()
        if next(times) % every == every - 1:
            result[3] = torch.nextafter(result[3], result[4])
        return result

    return compute


def test_every_repeat_that_differs_in_a_bit_is_counted() -> None:
    assert repeats.differing_repeats(X.clone, X, 25, beside=False) == 0
    assert repeats.differing_repeats(unsteady(10), X, 25, beside=False) == 2
    assert repeats.differing_repeats(lambda: X.new_empty(64), X, 4, beside=True) == 4


@pytest.mark.parametrize(
    ("tile", "passes"), [("right", True), ("half written", False), ("noisy", False)]
)
def test_a_proof_finds_what_is_wrong(
    tile: str, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of_key("linear 24x64-48")

    def computed(job: Job, operands: list[torch.Tensor], tile_or_library: Tile) -> torch.Tensor:
        x, weight, bias, _, residual = operands
        right = x @ weight.T + bias + residual
        if tile_or_library.library or tile == "right":
            return right
        if tile == "noisy":
            return right + torch.randn_like(right) * 1e-3
        out = torch.empty_like(right)
        out[:20] = right[:20]
        return out

    monkeypatch.setattr(repeats, "computed", computed)
    proof = repeats.prove(job, Tile(), torch.device("cpu"), 16)
    assert proof.repeats == 16
    assert proof.passed == passes
    assert (proof.differing > 8) == (tile == "noisy")
    assert 0 < proof.library_error < 1e-3


def test_operands_of_attention_are_parts_of_one_tensor() -> None:
    q, k, v = random_operands(job_of_key("attention 1x8x8-2x40"), torch.device("cpu"))
    assert q is not None
    assert k is not None
    assert v is not None
    assert q.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    assert q.shape == k.shape == (1, 8, 80)
    assert {one.stride(1) for one in (q, k, v)} == {240}


def test_the_table_keeps_what_it_had_and_says_how_new_tiles_were_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    path = tmp_path / "tuned.json"
    numbers = dict.fromkeys(("us", "library_us", "own_us", "tflops"), 1.0)
    proof = {**GOOD.fields(), "card": "a card", "triton": "3.6.0"}
    a, b, c = (f"linear {rows}x64-64" for rows in (64, 128, 256))
    before = {"tiles": {a: {}, b: {}}, "measured": {a: {}}, "proof": {a: 1, b: 2}}
    found = {
        b: {"tile": {"library": True}, "proof": None, **numbers},
        c: {"tile": {"columns": 128}, "proof": proof, **numbers},
    }
    write_table(path, before, found)
    table = read_table(path)
    assert table["tiles"] == {a: {}, b: {"library": True}, c: {"columns": 128}}
    assert table["proof"] == {a: 1, c: proof}
    assert set(table["measured"]) == {a, b, c}


NO_TABLES = (
    "3",
    '{"tiles": [], "measured": {}}',
    '{"tiles": {"a": {"high": 3}}, "measured": {}}',
    '{"tiles": {"linear 64x64-64": 3}, "measured": {}}',
    '{"tiles": {"banana": {}}, "measured": {}}',
)


@pytest.mark.parametrize("text", NO_TABLES)
def test_what_is_no_table_is_told_with_its_path(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiles.json"
    path.write_text(text)
    assert main(["tune", "--static", "--out", str(path)]) == 2
    assert f"{path} is no table of tiles: " in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--prove", "--static"])
def test_a_check_of_a_table_that_is_not_there_names_it(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", option, "--out", str(tmp_path / "none.json")]) == 2
    assert "none.json cannot be read" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to prove on")
def test_nothing_is_proved_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--prove"]) == 2
    assert "there is none; run it on one" in capsys.readouterr().err


def test_two_searches_do_not_write_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later one to end would drop what the other one found."""
    monkeypatch.setattr(programs, "this_card", lambda: H100)
    options = programs.Tuning(levels=("express",), processes=1, out=tmp_path / "tiles.json")
    with writing(tmp_path), pytest.raises(BusyError, match="another process writes into"):
        programs.tune_levels(options)
    assert not (tmp_path / "tiles.json").exists()


def test_a_table_is_not_proved_while_another_process_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "this_card", lambda: H100)
    path = tmp_path / "tiles.json"
    path.write_bytes(SHIPPED.read_bytes())
    options = programs.Tuning(levels=(), processes=1, out=path)
    with writing(tmp_path), pytest.raises(BusyError, match="another process writes into"):
        programs.prove_stored(options)


def test_cards_may_be_listed_with_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[programs.Tuning] = []
    monkeypatch.setattr(programs, "check_machine_code", lambda wanted: asked.append(wanted) or 0)
    assert main(["tune", "--static", "--cards", "RTX 5090, A10 ,l4"]) == 0
    assert asked[0].cards == ["RTX 5090", "A10", "L4"]


def test_known_tiles_are_timed_anew_only_where_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "this_card", lambda: H100)
    monkeypatch.setenv(TILES, str(tmp_path))
    with pytest.raises(SdoptError, match="has no tiles that could be timed anew"):
        programs.tune_levels(programs.Tuning(processes=1, known=True))


def test_a_table_is_checked_for_a_card_by_the_tiles_that_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a Hopper GPU's none on an A10: compiling those would end the compiler."""
    monkeypatch.setattr(programs, "find_spec", lambda name: name)
    monkeypatch.setattr(programs.chosen, "by_rule", lambda card: ())
    checked: list[Any] = []

    def check(self: Compilers, work: Sequence[Any], advance: object) -> None:
        checked.extend(work)
        self.verdicts |= {make_of(job, tile): "" for job, tiles in work for tile in tiles}

    monkeypatch.setattr(programs.Compilers, "check", check)
    path = tmp_path / "tiles.json"
    path.write_bytes(SHIPPED.read_bytes())
    options = programs.Tuning(processes=1, cards=("A10",), out=path)
    assert programs.check_machine_code(options) == 0
    assert {job.kind for job, _ in checked} == {"attention"}
    assert not any(tile.specialized for _, tiles in checked for tile in tiles)
    assert "tiles are of another kind of card" in capsys.readouterr().out


def test_a_dtype_that_no_kernel_has_is_refused_before_any_is_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(DTYPE, "float32")
    assert main(["tune", "--static"]) == 2
    assert "unknown dtype of a cuda device 'float32'" in capsys.readouterr().err


def test_a_compiler_that_dies_is_told_in_one_line() -> None:
    with Compilers(1, H100) as compilers:
        compilers._pool.submit(os._exit, 1)
        with pytest.raises(SdoptError, match="ended by itself, out of memory or in the compiler"):
            compilers.check([(LINEAR, [Tile()])])


def test_compilers_end_with_the_process_that_they_work_for(tmp_path: Path) -> None:
    program = (
        "import os, signal; from sdopt.engine.cards import H100\n"
        "from sdopt.tuning.compiling import Compilers\n"
        "compilers = Compilers(2, H100).__enter__()\n"
        "print(*compilers._pool._processes, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        children = [int(child) for child in process.stdout.readline().split()]
    assert len(children) == 2
    until = time.monotonic() + 30
    while any(is_running(child) for child in children) and time.monotonic() < until:
        time.sleep(0.2)
    assert not any(is_running(child) for child in children)


def is_running(process: int) -> bool:
    """Whether there is such a process, and nobody has only to fetch its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
