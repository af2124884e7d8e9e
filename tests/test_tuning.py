"""Which tiles are timed, which kernels that takes, and what the table of them refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdopt import tuning
from sdopt.engine.tiles import Tile
from sdopt.errors import BrokenFileError
from sdopt.tuning import Job, candidates, distinct, jobs_of_levels, read_table

CONVOLUTION = Job(
    key="conv 2x64x64x320-320",
    shapes=((2, 64, 64, 320), (320, 3, 3, 320), (320,), (2, 64, 64, 320)),
)
DOUBLED = Job(
    key="doubled 2x8x8x1280-1280", shapes=((2, 8, 8, 1280), (4 * 1280, 2, 2, 1280), (1280,))
)
NARROW = Job(key="conv 1x512x512x128-3", shapes=((1, 512, 512, 128), (3, 3, 3, 128), (3,), None))
LINEAR = Job(
    key="linear 512x5120-1280", shapes=((512, 5120), (1280, 5120), (1280,), None, (512, 1280))
)
GEGLU = Job(key="geglu 8192x320-1280", shapes=((8192, 320), (2560, 320), (2560,)))
JOBS = (CONVOLUTION, DOUBLED, NARROW, LINEAR, GEGLU)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.kind)
def test_candidates_are_many_different_tiles_that_fit_the_matrix_unit(job: Job) -> None:
    tiles = candidates(job)
    assert len(set(tiles)) == len(tiles) > 1
    assert all(tile.pixels in (64, 128, 256) and tile.splits >= 1 for tile in tiles)
    assert not any(tile.library for tile in tiles)


def test_sums_are_split_only_where_programs_are_few() -> None:
    assert {tile.splits for tile in candidates(DOUBLED)} == {1}
    assert {tile.splits for tile in candidates(GEGLU)} == {1}
    assert max(tile.splits for tile in candidates(LINEAR)) > 1


def test_widths_of_stable_diffusion_may_be_cut_by_160() -> None:
    assert {tile.extra for tile in candidates(CONVOLUTION)} == {0, 32}
    assert {tile.extra for tile in candidates(NARROW)} == {0}


def test_few_columns_get_narrow_tiles() -> None:
    assert {tile.columns for tile in candidates(NARROW)} == {16}


def test_arithmetic_is_a_multiplication_and_an_addition_for_each_weight_and_pixel() -> None:
    assert CONVOLUTION.flop == 2 * 2 * 64 * 64 * 320 * 320 * 9
    assert DOUBLED.flop == 2 * 2 * 8 * 8 * 1280 * 1280 * 4 * 4


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


def test_an_operation_without_a_weight_is_named() -> None:
    with pytest.raises(ValueError, match="conv broken: an operation has an input and a weight"):
        Job(key="conv broken", shapes=((1, 8, 8, 8), None)).first_two  # noqa: B018


def test_a_kernel_is_compiled_once_for_all_shapes_that_share_it() -> None:
    other = Job(
        key="conv 1x64x64x640-320",
        shapes=((1, 64, 64, 640), (320, 3, 3, 640), (320,), (1, 64, 64, 640)),
    )
    alone = {tile for _, tiles in distinct([CONVOLUTION]) for tile in tiles}
    again = [tile for job, tiles in distinct([CONVOLUTION, CONVOLUTION]) for tile in tiles]
    assert set(again) == alone
    assert len(again) == len(alone)
    added = [
        tile for job, tiles in distinct([CONVOLUTION, other]) if job is other for tile in tiles
    ]
    assert len(added) < len(candidates(other))


def test_tiles_that_are_known_are_the_only_ones_compiled() -> None:
    known = Tile(columns=128, splits=2)
    assert distinct([CONVOLUTION, LINEAR], lambda _: [known]) == [
        (CONVOLUTION, [known]),
        (LINEAR, [known]),
    ]


def test_the_operations_of_a_picture_are_found_by_drawing_one() -> None:
    jobs = jobs_of_levels(["turbo"], "embedded")
    kinds = {"conv", "plain", "doubled", "halved", "linear", "joined", "geglu", "attention"}
    assert kinds == {job.kind for job in jobs}
    assert len({job.key for job in jobs}) == len(jobs)
    assert all(candidates(job) for job in jobs)


def test_a_row_tells_the_shape_both_times_and_the_cut() -> None:
    tile = Tile(height=8, width=16, columns=128, extra=32, splits=2)
    found = {"us": 37.2, "tflops": 406.0, "library_us": 38.5, "own_us": 37.2, "own": vars(tile)}
    row = tuning._row("conv 2x64x64x320-320", found)
    assert row.startswith("conv 2x64x64x320-320")
    assert "library     38.5" in row
    assert "1x8x16x128+32x64 s4 w4 /2" in row


@pytest.mark.parametrize("content", ["", "[]", '{"tiles": {}}'])
def test_a_file_that_is_no_table_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(content)
    with pytest.raises(BrokenFileError, match="leave --missing and --known out"):
        read_table(path)
    assert path.read_text() == content


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
@pytest.mark.parametrize("option", ["--known", "--missing"])
def test_without_a_gpu_nothing_is_started_and_nothing_written(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tuned.json"
    path.write_bytes(tuning.TUNED.read_bytes())
    assert tuning.main([option, "--out", str(path)]) == 2
    assert "measured on a CUDA device, and there is none" in capsys.readouterr().err
    assert path.read_bytes() == tuning.TUNED.read_bytes()


def test_a_table_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tuning.main(["--known", "--out", str(tmp_path / "none.json")]) == 2
    assert "none.json cannot be read" in capsys.readouterr().err


def test_the_shipped_table_can_be_continued() -> None:
    table = read_table(tuning.TUNED)
    assert set(table["tiles"]) == set(table["measured"])
    assert "conv 2x64x64x320-320" in table["tiles"]
