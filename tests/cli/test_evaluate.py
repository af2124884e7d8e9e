"""`sdopt evaluate`: refusals before any work, a whole evaluation, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import plain, refusal
from jsonschema import Draft202012Validator

import sdopt.bench.evaluation.evaluate  # noqa: F401  (transformers prints its notices now)
from sdopt.bench.evaluation.crew import Crew
from sdopt.bench.stored import schema
from sdopt.cli.app import main
from sdopt.errors import SdoptError
from sdopt.evaluate import run

TWO = ("--levels", "express,turbo", "--reference", "hoisted", "--steps", "2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--levels", "turbo", "--out", "x"), "give either --prompts FILE or --scenes N"),
        (("--levels", "turbo", "--out", "x", "--scenes", "1", "--prompts", "p"), "give either"),
        (("--levels", "turbi", "--out", "x", "--scenes", "1"), "unknown level 'turbi'"),
        (("--levels", "turbo", "--scenes", "1"), "--out"),
        (
            ("--levels", "turbo", "--out", "x", "--scenes", "1", "--limit", "final:ssim_cost=1"),
            "unknown level of --limit 'final'",
        ),
        (
            (
                *("--levels", "dpm-20", "--reference", "euler-20", "--out", "x", "--scenes", "1"),
                *("--limit", "ssim_cost=0.999"),
            ),
            "--limit on ssim_cost cannot judge dpm-20: against euler-20 it measures other noise of "
            "the sampler, not a loss; limit ssim_ground_truth, psnr_ground_truth_db, "
            "attributes_right, clip_score, which are judged by their difference, or name",
        ),
        (
            (
                *("--levels", "dpm-20,euler-20-cutoff", "--reference", "euler-20", "--out", "x"),
                *("--scenes", "1", "--limit", "psnr_cost_db=30"),
            ),
            "or the cost of euler-20-cutoff alone (LEVEL:SCORE=X)",
        ),
        (
            ("--levels", "turbo", "--out", "x", "--scenes", "1", "--limit", "0.9"),
            "--limit is of an interval's bound, and 1 prompt has none; give 2 prompts or more",
        ),
        (
            ("--levels", "turbo", "--reference", "turbo", "--out", "x", "--scenes", "1"),
            "'turbo' is named twice",
        ),
        (
            ("--levels", "turbo", "--out", "x", "--scenes", "1", "--steps", "0"),
            "--steps is 0",
        ),
    ],
)
def test_a_mistake_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert words in refusal(capsys, "evaluate", "--source", "embedded", *arguments)


def test_a_plain_installation_says_what_is_missing(tmp_path: Path) -> None:
    given = ("evaluate", "--levels", "turbo", "--scenes", "1", "--out", tmp_path / "out")
    done = plain(*given, "--source", "embedded")
    assert done.returncode == 2
    assert "an evaluation needs jsonschema, scipy, skimage; in a clone of sdopt" in done.stderr
    assert not (tmp_path / "out").exists()


def test_levels_are_evaluated_and_held_to_a_limit(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("text,n\na cat,1\na dog,2\na bird,3\n")
    out = tmp_path / "out"
    given = ["evaluate", *TWO, "--source", str(micro), "--prompts", str(prompts)]
    given += ["--column", "text", "--out", str(out), "--part", "2", "--guidance", "2"]
    assert main([*given, "--limit", "-1"]) == 0
    told = capsys.readouterr().out
    assert "[turbo] ssim_cost: pass: the cost of `turbo` over 3 prompts is" in told
    assert f"wrote {out}/summary.md" in told
    assert main([*given, "--limit", "turbo:ssim_cost=1"]) == 1
    assert "[turbo] ssim_cost: regression" in capsys.readouterr().out
    assert main([*given, "--json", "--limit", "turbo:ssim_cost=1"]) == 1
    told = capsys.readouterr()
    assert "evaluate: [turbo] ssim_cost: regression: the cost of `turbo` over 3" in told.err
    summary = json.loads(told.out)
    assert summary == json.loads((out / "summary.json").read_text())
    Draft202012Validator(schema.load("evaluation")).validate(summary)
    assert summary["exit_code"] == 1
    assert [one["outcome"] for one in summary["verdicts"]] == ["recorded", "regression"]
    assert main([*given, "--json"]) == 0
    assert "regression" not in capsys.readouterr().err
    assert summary["run"]["guidance_scale"] == 2
    assert set(summary["levels"]) == {"hoisted", "express", "turbo"}
    assert summary["levels"]["turbo"]["scores"]["ssim_cost"]["count"] == 3
    assert "attributes_right" not in summary["levels"]["turbo"]["scores"]
    prompts.write_text("text,n\na cat,1\na dog,2\na fish,3\n")
    assert "holds another evaluation: prompts " in refusal(capsys, *given)


def test_a_process_that_reads_other_prompts_than_the_main_one_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(Crew, "told_by_main", lambda self, decide: "another digest")
    given = ("--levels", "turbo", "--source", "embedded", "--scenes", "1", "--out", tmp_path)
    message = refusal(capsys, "evaluate", *given)
    assert "process 0 finds other prompts in 1 held-out scenes than the main process" in message


def test_the_other_processes_end_without_a_word_where_the_main_one_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong() -> None:
        raise SdoptError("it is wrong")

    crew = Crew()
    with pytest.raises(SdoptError, match="it is wrong"):
        crew.told_by_main(wrong)
    monkeypatch.setattr(Crew, "is_main", False)
    monkeypatch.setattr(Crew, "size", 2)
    told: list[object] = [None, False]

    def broadcast(self: Crew, given: list[object]) -> None:
        given[:] = told

    monkeypatch.setattr(Crew, "broadcast", broadcast)
    with pytest.raises(SystemExit) as caught:
        crew.told_by_main(wrong)
    assert caught.value.code == 2
    told[:] = ["the answer", True]
    assert crew.told_by_main(wrong) == "the answer"


def test_a_cost_against_another_number_of_an_ancestral_sampler_s_steps_is_no_loss(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ("evaluate", "--levels", "baseline", "--reference", "euler-20", "--out", "x")
    given = (*given, "--prompts", "none.txt", "--source", "embedded", "--limit", "0.9")
    assert "--limit on ssim_cost cannot judge baseline" in refusal(capsys, *given)
    assert "none.txt cannot be read" in refusal(capsys, *given, "--steps", "20")


@pytest.mark.parametrize("out", ["", " ", "a.txt", "a.txt/below/it"])
def test_an_out_that_is_no_folder_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("mine")
    given = ("evaluate", "--levels", "turbo", "--source", "embedded", "--scenes", "2")
    words = "a.txt is a file; name a folder" if out.strip() else "--out is empty"
    assert words in refusal(capsys, *given, "--out", out)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("rank", "ending"), [("0", "evaluate: ends with exit code 2\n"), ("1", "")]
)
def test_the_last_word_of_the_main_process_is_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, ending: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("sys.argv", ["evaluate", "--levels", "turbo", "--out", ""])
    assert run() == 2
    refused, _, last = capsys.readouterr().err.partition("\n")
    assert refused.startswith("error: ")
    assert last == ending
