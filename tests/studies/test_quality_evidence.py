"""Summaries become a page: tables, one chart, and small images of the worst prompts."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import stub_evaluation as stub
from PIL import Image

from sdopt.bench.evaluation.pixels import to_png
from sdopt.bench.report.results import marks
from sdopt.errors import BrokenFileError
from studies import quality_page
from studies.quality import new_figure
from studies.quality_page import CHART, HISTORY, Found, main, sheet_of
from studies.quality_runs import LOSSY

ROOT = Path(__file__).parents[2]
NAMES = ("dpm", "dpm-guidance-7.5")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Summaries of two evaluations, with their results, and a page for all of them."""
    for name in NAMES:
        stub.run(stub.of(22), tmp_path / "build" / name)
        summary = (tmp_path / "build" / name / "summary.json").read_bytes()
        (tmp_path / f"quality-{name}.json").write_bytes(summary)
    every = [CHART, *(f"quality-{one.name}" for one in LOSSY)]
    page = [line for name in every for line in (*marks(name)[:1], "not yet", *marks(name)[1:])]
    (tmp_path / "page.md").write_text("\n".join(page))
    return tmp_path


def paged(folder: Path) -> str:
    given = [str(folder), "--page", str(folder / "page.md"), "--out", str(folder / "build")]
    assert main([*given, "--times", str(ROOT / HISTORY)]) == 0
    return (folder / "page.md").read_text()


def test_what_is_there_is_filled_in_and_the_rest_stays(made: Path) -> None:
    text = paged(made)
    assert text.count("not yet") == len(LOSSY) - len(NAMES)
    assert "mean of the worst 1 %" in text
    for file in re.findall(r"\]\(([^)]+)\)", text):
        assert (made / file).stat().st_size > 0
    worst = json.loads((made / "quality-dpm.json").read_text())["levels"]["turbo"]["worst"]
    assert text.count(worst[0]["prompt"]) >= 2
    with Image.open(made / "quality-dpm-worst-turbo.jpg") as sheet:
        assert sheet.width > sheet.height  # ten beside each other


def test_a_clone_without_results_keeps_the_sheets(made: Path) -> None:
    before = paged(made)
    shutil.rmtree(made / "build")
    assert paged(made) == before


def test_sheets_are_made_smaller_until_they_fit(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet = np.random.default_rng(1).integers(0, 256, (10 * 132 - 4, 2 * 132 - 4, 3), np.uint8)
    for name in NAMES:
        (made / "build" / name / "worst" / "turbo.png").write_bytes(to_png(sheet))
    sizes = []
    for most_kb in (quality_page.MOST_KB, 30):
        monkeypatch.setattr(quality_page, "MOST_KB", most_kb)
        paged(made)
        sizes.append(sum(path.stat().st_size for path in made.glob("*.jpg")))
    assert sizes[0] > 60_000
    assert sizes[1] <= 30_000


def test_a_sheet_is_turned_image_by_image() -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(3, 2)  # three prompts of two images
    sheet = np.full((3 * 20 - 4, 2 * 20 - 4, 3), 255, np.uint8)
    for row in range(3):
        for column in range(2):
            sheet[20 * row : 20 * row + 16, 20 * column : 20 * column + 16] = grey[row, column]
    turned = sheet_of(to_png(sheet), 3)
    assert turned.shape == (40, 60, 3)
    assert (turned[8::20, 8::20, 0] == grey.T).all()
    with pytest.raises(BrokenFileError, match="holds no 7 images"):
        sheet_of(to_png(sheet), 7)


def test_names_of_points_side_by_side_do_not_overlap() -> None:
    figure = new_figure(width=10, height=5)
    axes = figure.subplots()
    axes.set(xlim=(80, 100), ylim=(0.9, 1.1))
    value = {"mean": 1.0, "low": 0.999, "high": 1.001}
    names = ["express-float8", "hoisted-cutoff", "dpm-20-cutoff", "express", "final"]
    points = [(name, 89 + 0.3 * at, value) for at, name in enumerate(names)]
    quality_page._name_points(axes, [*points, *points])
    boxes = [text.get_window_extent() for text in axes.texts]
    assert sorted(text.get_text() for text in axes.texts) == sorted(names)
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)


def test_levels_that_give_something_away_are_told_from_the_others() -> None:
    summary = {"reference": "dpm-20", "levels": dict.fromkeys(("dpm-20", "hoisted", "turbo"))}
    assert Found(name="dpm", summary=summary).lossy() == ["turbo"]


def test_without_any_summary_the_next_command_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--page", str(tmp_path / "page.md")]) == 2
    assert "studies.quality_gpus lossy" in capsys.readouterr().err
