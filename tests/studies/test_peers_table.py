"""The peers' table says what was measured, over what, and what went wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdopt.bench.report.results import marks
from studies.peers.__main__ import main
from studies.peers.recipes import COMMON, DOCUMENTED, PEERS, PLAIN, RECIPES, Ground, Recipe
from studies.peers.table import HEADINGS, in_order, peers_page, peers_table
from studies.rows import Rows

DEEPCACHE = next(peer for peer in PEERS if peer.name == "DeepCache")
FINAL = next(recipe for recipe in RECIPES if recipe.level == "final")
TUNED_COMPILER = next(peer for peer in PEERS if peer.name == "compile-max-autotune")


def row(recipe: Recipe, ground: Ground = COMMON, **values: Any) -> dict[str, Any]:
    return {
        "name": recipe.row_name(ground),
        "recipe": recipe.name,
        "ground": str(ground),
        "work": recipe.work,
        "first_call_s": 2.0,
        "peak_allocated_mib": None,
        "peak_reserved_mib": None,
        **values,
    }


ROWS = [
    row(PLAIN, rounds_ms=[99.0, 100.0, 102.0]),
    row(PLAIN, DOCUMENTED, rounds_ms=[250.0]),
    row(
        DEEPCACHE,
        rounds_ms=[50.0],
        version="0.1.1",
        ssim_cost={"a": 0.9, "b": 0.8},
        peak_allocated_mib=2048.4,
        peak_reserved_mib=3000.0,
    ),
    row(FINAL, rounds_ms=[10.0], ssim_cost={"a": 0.98}),
    {
        **row(TUNED_COMPILER),
        "error": "did not finish in 600 s",
    },
]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_is_set_beside_plain_diffusers_on_its_ground() -> None:
    head, _, plain, documented, deepcache, _, final = map(cells, peers_page(ROWS))
    assert head == [*HEADINGS, "work of an image"]
    assert plain[:6] == [
        "`diffusers`",
        "dpm-solver++2m, 20",
        "100.0",
        "99.0 to 102.0",
        "1.00x",
        "2.0",
    ]
    assert documented[1:5] == ["pndm, 50", "250.0", "250.0 to 250.0", "1.00x"]
    assert deepcache[0] == "`DeepCache 0.1.1`"
    assert deepcache[4:8] == ["2.00x", "2.0", "2048 / 3000", "0.8500"]
    assert final[4:] == ["10.00x", "2.0", "-", "0.9800", FINAL.work]


def test_what_went_wrong_stands_in_its_row_and_below_the_terminals_table() -> None:
    assert cells(peers_page(ROWS)[-2])[:4] == [
        "`compile-max-autotune`",
        "dpm-solver++2m, 20",
        "did not finish in 600 s",
        "-",
    ]
    assert peers_table(ROWS)[-1] == (
        "compile-max-autotune (dpm-solver++2m, 20): did not finish in 600 s"
    )
    assert len(peers_table(ROWS)) == len(ROWS) + 1
    assert peers_table(ROWS[-1:]) == peers_table(ROWS)[-1:]


def test_rows_stand_in_the_order_of_the_recipes() -> None:
    backwards = [*reversed(ROWS), {**ROWS[0], "recipe": "retired"}]
    names = [row["recipe"] for row in in_order(backwards)]
    assert names == [
        "diffusers",
        "diffusers",
        "DeepCache",
        "compile-max-autotune",
        "sdopt-final",
        "retired",
    ]


def test_a_cost_can_come_from_another_source() -> None:
    costs = {DEEPCACHE.row_name(COMMON): {"ssim_cost": {"a": 0.5}}}
    *_, deepcache, _, final = map(cells, peers_page(ROWS, costs))
    assert (deepcache[7], final[7]) == ("0.5000", "-")


def test_a_worthless_image_is_said_in_the_place_of_its_ssim() -> None:
    broken = row(FINAL, rounds_ms=[1.0], ssim_cost={"a": 1.0}, faults={"b": "a black image"})
    assert cells(peers_page([broken])[-1])[7] == "b: a black image"


def test_the_page_is_written_between_its_own_marks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = Rows(path=tmp_path / "rows.json", made_on={"device": "a GPU", "source": "micro"})
    for one in ROWS:
        rows.put(one)
    begin, end = marks("peers")
    page = tmp_path / "results.md"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    assert main([str(rows.path), "--page", str(page)]) == 0
    assert page.read_text().startswith(f"before\n{begin}\n\n| recipe |")
    assert capsys.readouterr().out.startswith("a GPU, source micro\n\n| recipe |")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("recipe", 3, "recipe is 3, no text"),
        ("ground", None, "ground is null, no text"),
        ("work", [], "work is [], no text"),
        ("version", 1, "version is 1, no text"),
        ("error", 3, "error is 3, no text"),
        ("rounds_ms", "much", 'rounds_ms is "much", no list of milliseconds'),
        ("rounds_ms", [], "rounds_ms is [], no list of milliseconds"),
        ("rounds_ms", [1.0, "a"], "no list of milliseconds"),
        ("first_call_s", None, "first_call_s is null, no number from 0 on"),
        ("peak_allocated_mib", "x", 'peak_allocated_mib is "x", no number from 0 on'),
        ("faults", [], "faults is [], no texts by prompt"),
        ("ssim_cost", 0.9, "ssim_cost is 0.9, no numbers by prompt"),
        ("ssim_cost", {"a": "b"}, "no numbers by prompt"),
    ],
)
def test_a_damaged_row_is_named_by_its_field(
    field: str, value: Any, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = Rows(path=tmp_path / "rows.json", made_on={"device": "a GPU", "source": "micro"})
    rows.put({**ROWS[2], field: value})
    assert main([str(rows.path)]) == 2
    told = f"{rows.path} is damaged: row 'DeepCache (dpm-solver++2m, 20)': "
    said = capsys.readouterr().err
    assert told in said
    assert says in said
    sound = Rows(path=tmp_path / "sound.json", made_on=rows.made_on)
    sound.put(ROWS[2])
    assert main([str(sound.path), "--cost", str(rows.path)]) == 2
    assert told in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.json")]) == 2
    assert "none.json is missing" in capsys.readouterr().err
