"""`sdopt report`: which files it writes, what it says, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import plain, refusal
from reports import run_of, stored, written

from sdopt.cli import report
from sdopt.cli.app import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    stored(tmp_path, [{"turbo": 30.0}] * 2)
    return written(tmp_path / "run.json", run_of({"turbo": 45.0}))


def test_html_and_markdown_are_written_and_the_verdict_is_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "r.html"
    assert (
        main(["report", str(run), "--baselines", str(tmp_path), "-o", str(out), "--markdown"]) == 0
    )
    told = capsys.readouterr().out
    assert told.startswith("✗ Regression: 1 of 1 level failed (turbo).\nwrote ")
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert out.with_suffix(".md").read_text(encoding="utf-8").startswith("### ✗ Regression")


def test_markdown_alone_for_programs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.md"
    arguments = ["report", str(run), "--baselines", str(tmp_path), "-o", str(out), "--json"]
    assert main([*arguments, "--against", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["outcome"] == "regression"
    assert told["files"] == [str(out)]
    assert {one["metric"] for one in told["verdicts"]} >= {"latency_ms", "ssim_drift"}
    assert not (tmp_path / "r.html").exists()


def test_a_file_that_is_there_stays(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = written(tmp_path / "r.md", {})
    told = refusal(capsys, "report", run, "-o", out)
    assert "is there already" in told
    assert out.read_text(encoding="utf-8") == "{}"
    assert main(["report", str(run), "-o", str(out), "--force"]) == 0


def test_what_is_no_run_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.html"
    other = written(tmp_path / "verdicts.json", {"schema": "sdopt-verdicts/2"})
    assert "was not written by this suite" in refusal(capsys, "report", other, "-o", out)
    assert "is missing" in refusal(capsys, "report", tmp_path / "none.json", "-o", out)
    assert "ends in .html or .md" in refusal(capsys, "report", other, "-o", tmp_path / "r.pdf")
    assert not out.exists()


def test_another_run_that_is_not_there_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refusal(
        capsys, "report", run, "--baselines", tmp_path, "--against", "7", "-o", tmp_path / "r.html"
    )
    assert "no run '7'" in told
    assert "0002_r2.json" in told


def test_without_its_packages_it_says_what_to_install(tmp_path: Path) -> None:
    answer = plain("report", tmp_path / "run.json", "-o", tmp_path / "r.html")
    assert answer.returncode == 2
    assert "a report needs scipy, skimage; pip install 'sdopt[report]' brings them" in answer.stderr
    assert "plotly" in report.NEEDED
    assert "ruptures" in report.NEEDED
