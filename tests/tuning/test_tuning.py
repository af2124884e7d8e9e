"""Tables of tiles and `sdopt tune`: what is used, checked, refused and kept."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sdopt.cli.app import main
from sdopt.engine.cards import H100
from sdopt.engine.tables import shipped_table, tuned
from sdopt.engine.tiles import LIBRARY, Tile
from sdopt.errors import BrokenFileError, BusyError, SdoptError
from sdopt.tuning import programs
from sdopt.tuning.candidates import candidates
from sdopt.tuning.chosen import by_rule, stored, together
from sdopt.tuning.compiling import Compilers, make_of, shares_of
from sdopt.tuning.jobs import (
    CONVOLUTIONS,
    PRODUCTS,
    job_of_key,
    uses_of,
)
from sdopt.tuning.table import cut_of, read_table, row
from sdopt.util.places import TILES
from sdopt.util.precision import DTYPE
from sdopt.util.writing import writing

LINEAR = job_of_key("linear 512x5120-1280")
GEGLU = job_of_key("geglu 8192x320-1280")
SHIPPED = shipped_table(H100)


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


def test_each_candidate_of_an_operation_has_a_name_of_its_own() -> None:
    jobs = [
        LINEAR,
        GEGLU,
        job_of_key("conv 2x64x64x320-320"),
        job_of_key("attention 2x4096x4096-8x40"),
    ]
    for job in jobs:
        tiles = candidates(job)
        names = {cut_of(vars(tile)) for tile in tiles}
        assert len(names) == len(set(tiles)) > 1
    assert cut_of(vars(LIBRARY)) == "the library"


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
    uses = [(use.shapes[2:], use.relu) for use in uses_of(job_of_key("conv 2x64x64x320-320"))]
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
    of_linear = {
        make_of(use, Tile(columns=128)) for use in uses_of(job_of_key("linear 512x1280-1280"))
    }
    assert {make_of(use, Tile(columns=128)) for use in uses_of(job)} < of_linear


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
