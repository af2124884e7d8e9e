"""An evaluation becomes a table, two charts, and a size of what a batch moves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import stub_evaluation as stub

from sdopt.bench.report.results import marks
from studies.quality import main, points, read_summary, times_ms

PNG = b"\x89PNG"


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    stub.run(stub.of(22), tmp_path / "out")
    return tmp_path / "out"


def test_a_page_gets_the_table_and_the_charts_beside_it(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("\n".join(["before", *marks("mine"), "after"]))
    given = [str(evaluated / "summary.json"), "--page", str(page), "--name", "mine"]
    assert main([*given, "--worst", str(evaluated / "worst")]) == 0
    text = page.read_text()
    assert "| `turbo` |" in text
    assert "22 prompts (a stub), source `stub`" in text
    assert text.endswith("after")
    for name in ("mine.png", "mine-histograms.png", "mine-worst-turbo.png"):
        assert f"]({name})" in text
        assert (tmp_path / name).read_bytes().startswith(PNG)
    assert "wrote mine" in capsys.readouterr().out


def test_a_cost_that_is_not_comparable_is_no_point(evaluated: Path) -> None:
    summary = read_summary(evaluated / "summary.json")
    times = times_ms(summary, None)
    assert {level for level, *_ in points(summary, "ssim_cost", times)} == {"turbo"}
    summary["levels"]["turbo"]["comparable"] = False
    assert points(summary, "ssim_cost", times) == []


def test_a_history_gives_the_times_and_one_without_levels_no_chart(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none").mkdir()
    page = tmp_path / "page.md"
    page.write_text("\n".join(marks("quality")))
    given = [str(evaluated / "summary.json"), "--page", str(page), "--times"]
    assert main([*given, str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_noise_of_the_same_images_is_nothing_and_of_others_something(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.run(stub.of(22, batch=3), tmp_path / "again")
    assert main([str(evaluated), "--noise", str(tmp_path / "again")]) == 0
    told = capsys.readouterr().out
    assert {line.split()[1] for line in told.splitlines()} == {"0.00e+00"}
    assert main([str(evaluated), "--noise", str(tmp_path / "nowhere")]) == 2


def test_what_is_no_summary_is_named(evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = evaluated / "summary.json"
    data = json.loads(path.read_text())
    del data["levels"]["turbo"]["rate"]
    path.write_text(json.dumps(data))
    assert main([str(path)]) == 2
    assert "is not of the schema evaluation.json: $.levels.turbo" in capsys.readouterr().err
