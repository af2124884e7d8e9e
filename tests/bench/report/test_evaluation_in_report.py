"""An evaluation in a report: shown if it is there, text whatever it says, named if broken."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import stub_evaluation as stub
from command import refusal
from reports import HOSTILE, run_of, stored, written

from sdopt.bench.evaluation.judging import Limit
from sdopt.bench.report.page.evaluation import evaluated
from sdopt.bench.report.page.tables import Table
from sdopt.cli.app import main
from sdopt.errors import BrokenFileError

LIMIT = 0.5


@pytest.fixture
def run(tmp_path: Path) -> Path:
    stored(tmp_path, [{"hoisted": 60.0, "turbo": 30.0}] * 2)
    return written(tmp_path / "run.json", run_of({"hoisted": 60.0, "turbo": 30.0}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stub.run(stub.of(22), tmp_path / "found", limits=[Limit(score="ssim_cost", value=LIMIT)])
    return tmp_path / "found"


def reported(run: Path, *more: str) -> tuple[str, str]:
    """HTML and Markdown."""
    out = run.parent / "r.html"
    given = ["report", str(run), "--baselines", str(run.parent), "-o", str(out), "--markdown"]
    assert main([*given, "--force", *more]) == 0
    return out.read_text(encoding="utf-8"), out.with_suffix(".md").read_text(encoding="utf-8")


def changed(folder: Path, change: Any) -> None:
    file = folder / "summary.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def test_one_prompt_shows_no_interval(tmp_path: Path) -> None:
    stub.run(stub.of(1), tmp_path)
    found = evaluated(tmp_path / "run.json", "stub", tmp_path)
    assert found is not None
    assert found.table is not None
    row = dict(zip(found.table.headings, found.table.rows[0], strict=True))
    assert row["cost"] != row["from"] == row["to"] == row["limit"]


def test_cost_interval_limit_verdict_histogram_and_worst_prompts_are_shown(
    run: Path, folder: Path
) -> None:
    html, markdown = reported(run, "--evaluation", str(folder))
    told = json.loads((folder / "summary.json").read_text())
    score = told["levels"]["turbo"]["scores"]["ssim_cost"]
    for text in (html, markdown):
        assert "the cost of `turbo` over 22 prompts is" in text.replace("&#39;", "'")
        assert "limit 0.5" in text
        for name in ("mean", "low", "high", "worst_percent"):
            assert f"{score[name]:.4f}" in text
        assert told["levels"]["turbo"]["worst"][0]["prompt"] in text
        assert "another source" in text  # the stub's is not the run's
    assert html.count('<rect x="') == len(score["histogram"]["counts"])
    assert re.search(r'<img class="sheet" src="data:image/webp;base64,', html)
    assert 'href="#evaluation"' in html


def test_without_one_nothing_is_said(run: Path) -> None:
    for text in reported(run):
        assert "over many prompts" not in text
        assert "#evaluation" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)


def test_one_beside_the_run_is_found_and_a_broken_one_told(run: Path, folder: Path) -> None:
    folder.rename(run.parent / "quality")
    assert all("over 22 prompts" in text for text in reported(run))
    (run.parent / "quality" / "summary.json").write_text("{}")
    html, markdown = reported(run)
    assert "evaluation beside the run cannot be shown" in html
    assert "evaluation beside the run cannot be shown" in markdown


def test_what_was_named_and_is_none_is_refused(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("report", run, "--baselines", run.parent, "-o", run.parent / "x.md", "--evaluation")
    assert "summary.json" in refusal(capsys, *given, run.parent / "nowhere")
    whole = (folder / "summary.json").read_bytes()
    changed(folder, lambda data: data["levels"]["turbo"].pop("rate"))
    assert "not of the schema evaluation.json" in refusal(capsys, *given, folder)
    (folder / "summary.json").write_bytes(whole)
    (folder / "worst" / "turbo.png").write_bytes(b"no image")
    told = refusal(capsys, *given, folder)
    assert "turbo.png is no PNG file" in told
    assert "git checkout" not in told
    assert not (run.parent / "x.md").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["verdicts"].append({"level": "x"}),
        lambda data: data["run"].pop("torch"),
        lambda data: data["run"].update(guidance_scale=[]),
        lambda data: data.update(reference=[]),
    ],
)
def test_a_field_that_is_missing_or_of_another_kind_is_named(
    change: Any, run: Path, folder: Path
) -> None:
    changed(folder, change)
    with pytest.raises(BrokenFileError, match=r"summary\.json"):
        evaluated(run, "stub", folder)


def test_words_of_others_stay_text_and_names_lead_nowhere(
    run: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.png").write_bytes((folder / "worst/turbo.png").read_bytes())

    stub.harm(folder, HOSTILE, "../../secret")
    html, markdown = reported(run, "--evaluation", str(folder))
    body = html[html.index("<body>") : html.index('<script type="application/json"')]
    assert "<script" not in body
    assert "<img src=x" not in body
    assert "<b>bold" not in body
    assert body.count('<img class="sheet"') == 1
    outside = re.sub(r"(`+) .*? \1|`[^`]*`", "", markdown)
    assert "<img src=x" not in outside
    assert "https://harm.test" not in outside


def score(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["levels"]["turbo"]["scores"]["ssim_cost"]
    return found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: score(data).update(low=math.nan), "ssim_cost.low is nan, expected a finite"),
        (lambda data: score(data).update(mean=math.inf), "ssim_cost.mean is inf, expected"),
        (lambda data: score(data).update(mean=-3.0), "ssim_cost.mean is -3.0, expected it between"),
        (lambda data: score(data)["histogram"]["edges"].pop(), "edges of"),
        (lambda data: score(data)["histogram"]["edges"].reverse(), "edges do not ascend"),
        (lambda data: data.update(reference="finale"), "reference is 'finale', expected one of"),
        (lambda data: data["levels"]["turbo"]["rate"].pop("processes"), "turbo.rate has images"),
    ],
)
def test_numbers_that_are_none_are_named(
    change: Any, says: str, run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(folder, change)
    given = ("report", run, "--baselines", run.parent, "-o", run.parent / "x.md", "--evaluation")
    told = refusal(capsys, *given, folder)
    assert f"{folder / 'summary.json'} is not what an evaluation wrote: $." in told
    assert says in told


def test_a_limit_that_is_no_number_is_a_dash(run: Path, folder: Path) -> None:
    changed(folder, lambda data: data["verdicts"][0].update(limit="much"))
    found = evaluated(run, "stub", folder)
    assert found is not None
    assert isinstance(found.table, Table)
    assert found.table.rows[0][5].key is None
    assert "another source" not in found.note
