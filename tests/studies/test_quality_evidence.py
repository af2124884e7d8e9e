"""Summaries become a page: tables, one chart, and small images of the worst prompts."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stub_evaluation as stub
from matplotlib.transforms import Bbox
from PIL import Image

from sdopt.bench.evaluation.pixels import to_png
from sdopt.bench.report.results import marks
from sdopt.errors import BrokenFileError
from studies import quality, quality_page
from studies.point_names import CAP_PT, MARKER_PT, Point, name_points
from studies.quality import (
    SHOWN,
    draw_histograms,
    new_figure,
    points,
    times_ms,
)
from studies.quality_chart import draw_levels
from studies.quality_page import CHART, HISTORY, Found, found_in, main, turned
from studies.quality_runs import LOSSY, Lossy
from studies.quality_sheets import read_sheet

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "docs" / "samples"
STUBS = tuple(
    Lossy(name=name, reference="hoisted", levels=("turbo",), guidance=guidance)
    for name, guidance in (("dpm", 3.0), ("dpm-guidance-7.5", 7.5))
)
NAMES = [one.name for one in STUBS]
SHEET = "quality-dpm-worst-turbo.jpg"


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Summaries of two evaluations, with their results."""
    folder = tmp_path_factory.mktemp("evaluations")
    for one in STUBS:
        stub.run(stub.of(22, guidance=one.guidance), folder / "build" / one.name)
        summary = (folder / "build" / one.name / "summary.json").read_bytes()
        (folder / f"quality-{one.name}.json").write_bytes(summary)
    return folder


@pytest.fixture
def made(once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, and a page for all evaluations, in which the two are the stub's."""
    others = tuple(one for one in LOSSY if one.name not in NAMES)
    monkeypatch.setattr(quality_page, "LOSSY", (*STUBS, *others))
    shutil.copytree(once, tmp_path, dirs_exist_ok=True)
    every = [CHART, *(f"quality-{one.name}" for one in LOSSY)]
    page = [line for name in every for line in (*marks(name)[:1], "not yet", *marks(name)[1:])]
    (tmp_path / "page.md").write_text("\n".join(page))
    return tmp_path


def run(folder: Path, page: Path | None = None) -> int:
    there = page or folder / "page.md"
    given = [str(folder), "--page", str(there), "--out", str(folder / "build")]
    return main([*given, "--times", str(ROOT / HISTORY)])


def paged(folder: Path) -> str:
    assert run(folder) == 0
    return (folder / "page.md").read_text()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed(file: Path, change: Any) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


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


def test_a_page_copied_alone_keeps_its_lines_of_sheets_and_the_missing_are_named(
    made: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    before = paged(made)
    assert capsys.readouterr().err == ""
    shutil.rmtree(made / "build")
    page = tmp_path_factory.mktemp("alone") / "copy.md"
    page.write_text(before)
    assert run(made, page) == 0
    assert page.read_text() == before
    told = capsys.readouterr().err
    assert f"there is no {made / 'build' / 'dpm' / 'worst'}/turbo.png" in told
    assert f"no {page.parent / SHEET}; the line that shows it stays in {page}" in told
    assert len(told.splitlines()) == len(NAMES)
    page.write_text("\n".join(line for line in before.splitlines() if SHEET not in line))
    assert run(made, page) == 0
    assert f"no {page.parent / SHEET}; no line shows it in {page}" in capsys.readouterr().err


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


def test_a_sheet_is_turned_image_by_image(tmp_path: Path) -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(3, 2)  # three prompts of two images
    sheet = np.full((3 * 20 - 4, 2 * 20 - 4, 3), 255, np.uint8)
    for row in range(3):
        for column in range(2):
            sheet[20 * row : 20 * row + 16, 20 * column : 20 * column + 16] = grey[row, column]
    (tmp_path / "sheet.png").write_bytes(to_png(sheet))
    on_its_side = turned(read_sheet(tmp_path / "sheet.png", 3), 3)
    assert on_its_side.shape == (40, 60, 3)
    assert (on_its_side[8::20, 8::20, 0] == grey.T).all()
    for prompts in (7, 0):
        with pytest.raises(BrokenFileError, match=f"sheet.png, .* holds no {prompts} images"):
            read_sheet(tmp_path / "sheet.png", prompts)


def told(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["levels"]["turbo"]["scores"]["ssim_cost"]
    return found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda data: data.update(reference="turbo"),
            "holds reference 'turbo', expected 'hoisted'",
        ),
        (lambda data: data["run"].update(guidance_scale=7.5), "guidance 7.5, expected 3.0"),
        (lambda data: data["levels"].update(swift=data["levels"]["turbo"]), "holds levels"),
        (lambda data: data["levels"].update(tubro=data["levels"]["turbo"]), "level 'tubro'"),
        (lambda data: data.update(reference="hoistd"), "$.reference is 'hoistd'"),
        (lambda data: told(data).update(low=math.nan), "ssim_cost.low is nan"),
        (lambda data: told(data).update(high=math.nan), "ssim_cost.high is nan"),
        (lambda data: told(data).update(mean=-3.0), "ssim_cost.mean is -3.0"),
        (lambda data: told(data)["histogram"]["edges"].pop(), "ssim_cost.histogram has"),
    ],
)
def test_a_summary_that_is_not_what_its_name_says_is_refused_and_nothing_written(
    change: Any, says: str, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(made / "quality-dpm.json", change)
    before = contents(made)
    assert run(made) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {made / 'quality-dpm.json'}")
    assert says in err
    assert contents(made) == before


def test_a_summary_of_another_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(SAMPLES / "quality-euler-20.json", tmp_path / "quality-dpm.json")
    assert main([str(tmp_path), "--page", str(tmp_path / "page.md")]) == 2
    assert "holds reference 'euler-20', expected 'dpm-20'" in capsys.readouterr().err


def other_evaluation(made: Path) -> None:
    stub.run(stub.of(24, guidance=3.0), made / "other")
    shutil.rmtree(made / "build" / "dpm")
    (made / "other").rename(made / "build" / "dpm")


def other_prompts(made: Path) -> None:
    file = made / "build" / "dpm" / "summary.json"
    changed(file, lambda data: data["levels"]["turbo"]["worst"].reverse())


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (other_evaluation, "holds prompts 24, expected 22; name the folder of that one"),
        (other_prompts, "holds worst of turbo [{"),
        (lambda made: (made / "build/dpm/summary.json").unlink(), "summary.json is missing"),
        (
            lambda made: (made / "build/dpm/worst/turbo.png").write_bytes(b"no image"),
            "worst/turbo.png is no PNG file, whatever its name says; sdopt evaluate makes",
        ),
        (
            lambda made: (made / "build/dpm/worst/turbo.png").write_bytes(to_png(ONE_ROW)),
            "worst/turbo.png, 16 pixels high, holds no 10 images",
        ),
        (lambda made: (made / "page.md").write_text("no marks"), "page.md has no <!-- "),
        (lambda made: (made / "page.md").unlink(), "page.md cannot be read: No such file"),
    ],
)
def test_what_cannot_be_used_is_named_and_nothing_written(
    harm: Any, says: str, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(made)
    before = contents(made)
    assert run(made) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert says in err
    assert contents(made) == before


ONE_ROW = np.zeros((16, 16, 3), np.uint8)


def test_the_last_mark_that_is_missing_stops_the_first_image(made: Path) -> None:
    lines = (made / "page.md").read_text().splitlines()
    wanted = marks(f"quality-{NAMES[-1]}")
    (made / "page.md").write_text("\n".join(line for line in lines if line not in wanted))
    before = contents(made)
    assert run(made) == 2
    assert contents(made) == before


def test_a_page_that_cannot_be_written_is_named(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(quality, "write_whole", full)
    assert run(made) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: \S+ cannot be written: No space left on device\n", err)


def in_the_way(axes: Any, ms: float, value: Any) -> Iterator[Bbox]:
    """The boxes of a point's marker and of its interval with its ends."""
    pixel = axes.figure.dpi / 72
    x, mean = axes.transData.transform((ms, value["mean"]))
    low, high = (axes.transData.transform((ms, value[edge]))[1] for edge in ("low", "high"))
    yield Bbox([[x - MARKER_PT / 2 * pixel, mean - 2], [x + MARKER_PT / 2 * pixel, mean + 2]])
    yield Bbox([[x - CAP_PT * pixel, low], [x + CAP_PT * pixel, high]])


def covering(axes: Any, values: Sequence[Point]) -> list[str]:
    """Names that cover a marker, an interval or another name, or are not inside."""
    names = [(text.get_text(), text.get_window_extent()) for text in axes.texts]
    points = [box for _, ms, value in values for box in in_the_way(axes, ms, value)]
    found = [name for name, box in names if any(box.overlaps(other) for other in points)]
    for (one, box), (_, other) in itertools.combinations(names, 2):
        found += [one] if box.overlaps(other) else []
    frame = axes.get_window_extent()
    return found + [name for name, box in names if not (frame.x0 <= box.x0 and box.x1 <= frame.x1)]


def test_names_of_points_side_by_side_cover_nothing() -> None:
    axes = new_figure(width=10, height=5).subplots()
    axes.set(xlim=(80, 100), ylim=(0.9, 1.1))
    value = {"mean": 1.0, "low": 0.999, "high": 1.001}
    names = ["express-float8", "hoisted-cutoff", "dpm-20-cutoff", "express", "final"]
    points = [(name, 89 + 0.3 * at, value) for at, name in enumerate(names)]
    name_points(axes, [*points, *points])
    assert sorted(text.get_text() for text in axes.texts) == sorted(names)
    assert covering(axes, points) == []


def test_a_name_keeps_off_the_intervals_and_markers_of_other_series() -> None:
    axes = new_figure(width=10, height=5).subplots()
    axes.set(xlim=(80, 100), ylim=(0.9, 1.1))
    points = [
        ("swift", 90.0, {"mean": 1.0, "low": 0.999, "high": 1.001}),
        ("swift", 90.0, {"mean": 0.985, "low": 0.975, "high": 0.995}),  # where its name would be
        ("final", 90.5, {"mean": 1.015, "low": 1.01, "high": 1.02}),  # and above it
    ]
    name_points(axes, points)
    assert covering(axes, points) == []


def test_no_name_in_the_chart_of_the_evidence_covers_anything() -> None:
    found = found_in(SAMPLES)
    figure = draw_levels({one.label: one.summary for one in found}, ROOT / HISTORY)
    for axes, score in zip(figure.axes, SHOWN, strict=True):
        values = [
            point
            for one in found
            for point in points(one.summary, score, times_ms(one.summary, ROOT / HISTORY))
        ]
        assert len(axes.texts) == len({level for level, *_ in values}) > 10
        assert covering(axes, values) == []


def test_a_bar_of_one_prompt_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(quality, "as_png", lambda figure: figures.append(figure) or b"")
    draw_histograms(found_in(SAMPLES)[2].summary)
    axes = figures[0].axes[0]
    figures[0].draw_without_rendering()
    bottom, one = axes.transData.transform([(0.0, axes.get_ylim()[0]), (0.0, 1.0)])[:, 1]
    assert one - bottom > 5
    assert "log" in axes.get_ylabel()


def test_levels_that_give_something_away_are_told_from_the_others() -> None:
    summary = {"reference": "dpm-20", "levels": dict.fromkeys(("dpm-20", "hoisted", "turbo"))}
    assert Found(name="dpm", path=Path(), summary=summary).lossy() == ["turbo"]


def test_without_any_summary_the_next_command_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--page", str(tmp_path / "page.md")]) == 2
    assert "studies.quality_gpus lossy" in capsys.readouterr().err
