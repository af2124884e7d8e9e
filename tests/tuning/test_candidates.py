"""Which tiles are timed, for which operations, and which kernels that takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sdopt.engine.cards import H100, KNOWN
from sdopt.engine.tables import tuned
from sdopt.engine.tiles import FLOAT8, Tile
from sdopt.tuning.candidates import SHARED_BYTES, attention_bytes, candidates, near
from sdopt.tuning.chosen import used
from sdopt.tuning.compiling import distinct
from sdopt.tuning.jobs import (
    CONVOLUTIONS,
    PRODUCTS,
    Job,
    job_of_key,
    jobs_of_levels,
)

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
    assert distinct([both[0], both[0]]) == distinct(both[:1])
    added = [tile for job, tile in distinct(both).values() if job is other]
    assert len(added) < len(candidates(other))


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
