"""`sdopt report`: which files it writes, what it says, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
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


def test_what_is_wrong_with_a_named_file_is_told_with_the_next_step(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Git has none of a file that lies anywhere: it is suggested for the baselines' own alone."""
    out, plain_png = tmp_path / "r.html", tmp_path / "plain.png"
    plain_png.write_bytes(b"\x89PNG")
    os.mkfifo(tmp_path / "fifo")
    half = tmp_path / "half.json"
    half.write_text(json.dumps({**json.loads(run.read_text()), "datetime": "x\ud800y"}))
    given = ("--baselines", tmp_path, "-o", out)
    for file, says in (
        (tmp_path / "nothere.json", "is missing"),
        (Path("/dev/zero"), "cannot be read: it is no plain file"),
    ):
        for command in (("report", file), ("baseline", "accept", file)):
            told = refusal(capsys, *command, *given[: 4 if command[0] == "report" else 2])
            assert says in told
            assert "name what --benchmark-json=FILE wrote, or a stored run" in told
            assert "git checkout" not in told
    elsewhere = ("--baselines", tmp_path / "history", "-o", out)
    for file, says in (
        (plain_png, "cannot be read"),
        (tmp_path / "fifo", "it is no plain file"),
        (half, "half a character"),
    ):
        told = refusal(capsys, "report", file, *elsewhere)
        assert says in told
        assert "git checkout" not in told
        assert "name what --benchmark-json" in told
    stored_one = next(tmp_path.glob("history/*/*/0001*.json"))
    stored_one.write_text("{")
    assert "; it was left as it is; " in refusal(capsys, "report", stored_one, *given)
    assert not out.exists()


def test_baselines_that_are_not_there_are_no_empty_ones(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for nothing in (tmp_path / "nofolder", run):
        says = f"there is no folder {nothing}"
        more = ("-o", tmp_path / "r.html")
        assert says in refusal(capsys, "report", run, "--baselines", nothing, *more)
        for command in (("levels",), ("baseline", "list"), ("baseline", "prune"), ("history",)):
            assert says in refusal(capsys, *command, "--baselines", nothing)


def test_a_run_is_never_judged_by_itself(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--baselines", tmp_path, "-o", tmp_path / "r.html")
    assert "is the run itself" in refusal(capsys, "report", run, "--against", run, *given)
    first, second = sorted(tmp_path.glob("history/*/*/*.json"))
    for wanted in ("2", second, second.name):
        told = refusal(capsys, "report", second, "--against", wanted, *given)
        assert f"no run '{wanted}' before {second.name}" in told
        assert first.name in told
    assert "before 0001" in refusal(capsys, "report", first, "--against", second, *given)
    link = tmp_path / "link.json"
    link.symlink_to(run)
    assert "is the run itself" in refusal(capsys, "report", run, "--against", link, *given)


def test_choices_say_that_there_are_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(tmp_path, [{"turbo": 30.0}] * 7)
    run = written(tmp_path / "run.json", run_of({"turbo": 45.0}))
    given = ("--baselines", tmp_path, "-o", tmp_path / "r.html")
    told = refusal(capsys, "report", run, "--against", "0099", *given)
    assert "0003_r3.json, 0004" in told
    assert "0007_r7.json, or 2 older ones from 0001_r1.json on" in told
    other = run_of({"turbo": 45.0})
    other["sdopt"]["hardware"] = "cpu-other"
    written(tmp_path / "other.json", other)
    told = refusal(capsys, "report", run, "--against", tmp_path / "other.json", *given)
    assert "only runs of the same are compared: name one of those" in told


def test_a_file_that_cannot_be_written_is_named_with_the_next_step(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    out = tmp_path / "r.md"
    told = refusal(capsys, "report", run, "--baselines", tmp_path, "-o", out)
    assert told == (
        f"error: {out}: No space left on device; make room there, or name a place that has room; "
        "then run it again\n"
    )
    (tmp_path / "in the way").touch()
    told = refusal(capsys, "report", run, "-o", tmp_path / "in the way" / "r.md")
    assert f"{tmp_path / 'in the way'}" in told
    assert "name another file or folder, and run it again" in told
    assert "Errno" not in told


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
    assert "a report needs scipy, skimage; in a clone of sdopt, pip install " in answer.stderr
    assert "plotly" in report.NEEDED
    assert "ruptures" in report.NEEDED
