"""A run notes sdopt's version and commit, the card and the date, and warns of a mixture."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import stub_evaluation as stub
from jsonschema import Draft202012Validator

import sdopt
from sdopt.bench.evaluation import evaluate as module
from sdopt.bench.evaluation.here import CHANGED, Here, commit_of
from sdopt.bench.evaluation.summary import markdown
from sdopt.bench.stored import schema
from sdopt.errors import SdoptError

pytestmark = pytest.mark.fast
SAMPLES = Path(sdopt.__file__).parents[1] / "docs" / "samples"


def at(monkeypatch: pytest.MonkeyPatch, commit: str | None, card: str | None = None) -> None:
    here = Here(commit=commit, card=card, date="2026-11-29T12:00:00+00:00")
    monkeypatch.setattr(module, "here_of", lambda device: here)


def told(out: Path, **more: Any) -> tuple[dict[str, Any], list[str]]:
    """The run of the summary, and what was said."""
    said: list[str] = []
    summary, _ = stub.run(stub.of(4), out, say=said.append, **more)
    Draft202012Validator(schema.load("evaluation")).validate(summary)
    return summary["run"], [line for line in said if "warning" in line]


def test_version_commit_card_and_date_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, "aaaaaaaaaaaa", "NVIDIA H200")
    run, warned = told(tmp_path)
    noted = ("sdopt", "commits", "cards", "date")
    assert [run[name] for name in noted] == [
        *(sdopt.__version__, ["aaaaaaaaaaaa"]),
        *(["NVIDIA H200"], "2026-11-29T12:00:00+00:00"),
    ]
    assert warned == []
    stored = json.loads((tmp_path / "run.json").read_text())
    assert {name: stored[name] for name in noted} == {name: run[name] for name in noted}
    assert "px, float32 on NVIDIA H200, torch" in (tmp_path / "summary.md").read_text()
    assert told(tmp_path) == (run, [])


def test_another_commit_and_uncommitted_changes_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, "aaaaaaaaaaaa")
    told(tmp_path)
    at(monkeypatch, "bbbbbbbbbbbb")
    run, warned = told(tmp_path)
    assert run["commits"] == ["aaaaaaaaaaaa", "bbbbbbbbbbbb"]
    words = "warning: sdopt is at commit bbbbbbbbbbbb; parts there were made at aaaaaaaaaaaa: if"
    assert [line.startswith(words) for line in warned] == [True]
    at(monkeypatch, f"bbbbbbbbbbbb{CHANGED}")
    assert "at commit bbbbbbbbbbbb with uncommitted changes; parts" in told(tmp_path)[1][0]
    at(monkeypatch, None)
    assert told(tmp_path)[1] == []


def test_another_version_needs_another_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.run(stub.of(4), tmp_path)
    monkeypatch.setattr(sdopt, "__version__", "9.9")
    with pytest.raises(
        SdoptError, match=r"another evaluation: sdopt 0\.1\.0 -> 9\.9; name another"
    ):
        stub.run(stub.of(4), tmp_path)
    file = tmp_path / "run.json"
    run = json.loads(file.read_text())
    del run["sdopt"]
    file.write_text(json.dumps(run))
    with pytest.raises(SdoptError, match=r"another evaluation: sdopt unknown -> 9\.9"):
        stub.run(stub.of(4), tmp_path)


def test_what_a_hand_made_of_these_fields_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, "aaaaaaaaaaaa")
    told(tmp_path)
    file = tmp_path / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "commits": 7, "cards": [7]}))
    assert told(tmp_path)[0]["commits"] == ["aaaaaaaaaaaa"]


def test_a_clone_says_its_commit_and_whether_its_code_was_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(("git", "-C", str(tmp_path), *who, *arguments), check=True)

    assert commit_of(tmp_path) is None
    (tmp_path / "sdopt").mkdir()
    git("init", "-q")
    assert commit_of(tmp_path) is None
    (tmp_path / "sdopt" / "one.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "one")
    commit = commit_of(tmp_path)
    assert commit is not None
    assert len(commit) == 12
    (tmp_path / "notes.txt").write_text("not sdopt's code")
    assert commit_of(tmp_path) == commit
    (tmp_path / "sdopt" / "one.py").write_text("2")
    assert commit_of(tmp_path) == commit + CHANGED
    assert commit_of(tmp_path / "sdopt") is None


@pytest.mark.parametrize("file", sorted(SAMPLES.glob("quality-*.json")), ids=lambda one: one.name)
def test_older_summaries_stay_readable(file: Path) -> None:
    summary = json.loads(file.read_text())
    if summary.get("schema") == "sdopt-evaluation/1":
        Draft202012Validator(schema.load("evaluation")).validate(summary)
        assert f"{summary['run']['dtype']} on " in markdown(summary)[0]
