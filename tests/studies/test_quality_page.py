"""An evaluation becomes a table, two charts, and a size of what a batch moves."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import stub_evaluation as stub

from sdopt.bench.report.results import marks
from sdopt.bench.stored.summaries import read_summary
from studies.quality import main, points, times_ms

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
    assert "| worst 1 %, score |" in text
    assert re.search(r"\| `turbo` \|.* \| \d\.\d{4} ssim_cost \|", text)
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


def test_a_missing_or_foreign_sheet_and_an_unknown_level_are_named_and_nothing_written(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, file = tmp_path / "page.md", evaluated / "summary.json"
    page.write_text("\n".join(marks("mine")))
    given = [str(file), "--page", str(page), "--name", "mine", "--worst"]
    stub.run(stub.of(24), tmp_path / "other")
    assert main([*given, str(tmp_path / "other" / "worst")]) == 2
    assert "holds prompts 24, expected 22" in capsys.readouterr().err
    (evaluated / "worst" / "turbo.png").unlink()
    assert main([*given, str(evaluated / "worst")]) == 2
    assert "worst/turbo.png cannot be read: No such file" in capsys.readouterr().err
    data = json.loads(file.read_text())
    data["levels"]["../up"] = data["levels"]["turbo"]
    file.write_text(json.dumps(data))
    assert main(given[:-1]) == 2
    assert "summary.json: unknown level '../up'" in capsys.readouterr().err
    assert page.read_text() == "\n".join(marks("mine"))
    assert list(tmp_path.glob("mine*")) == []
