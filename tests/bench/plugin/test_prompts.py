"""--sdopt-prompts brings prompts of one's own, with baselines of their own."""

from __future__ import annotations

import json

import pytest
from project import Project

from sdopt.bench.judge.verdict import ExitCode

QUALITY = "benchmarks/test_quality.py"
GOOD = {"name": "own", "prompt": "a lamp", "seed": 5}


def write(project: Project, *lines: str) -> str:
    (project.path / "mine.jsonl").write_text("\n".join(lines) + "\n")
    return "--sdopt-prompts=mine.jsonl"


def test_own_prompts_have_their_own_images(stored: Project) -> None:
    option = write(stored, json.dumps(GOOD))
    result = stored.run(option, tests=QUALITY)
    result.assert_outcomes(failed=3, passed=1, skipped=2)
    result.stdout.fnmatch_lines(["sdopt: source micro*, 1 prompts"])
    result.stdout.fnmatch_lines(["*no baseline image *micro--mine/baseline/own.png*"])
    stored.run(option, "--sdopt-accept", tests=QUALITY).assert_outcomes(passed=4, skipped=2)
    own = stored.baselines / "images" / "micro--mine" / "baseline"
    assert [path.name for path in own.iterdir()] == ["own.png"]
    stored.run(option, tests=QUALITY).assert_outcomes(passed=4, skipped=2)


def test_own_prompts_are_not_compared_with_the_built_in_ones(stored: Project) -> None:
    option = write(stored, json.dumps(GOOD))
    result = stored.latency(option, "--benchmark-compare")
    assert result.ret == ExitCode.FAULT
    result.stdout.fnmatch_lines(["*no stored run for this hardware and source in *micro--mine*"])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "mine.jsonl:2: not JSON: Expecting property name*; give one JSON object a line, *"),
        ("[1]", "mine.jsonl:2: not a JSON object*"),
        ('{"name": "a", "promt": "b", "seed": 1}', "mine.jsonl:2: unknown fields *promt*"),
        (json.dumps(GOOD), "mine.jsonl:2: the name 'own' was used before"),
        (json.dumps({**GOOD, "name": "../up"}), "mine.jsonl:2: name '../up' must match *"),
        (json.dumps({**GOOD, "name": "b", "seed": -1}), "mine.jsonl:2: seed is -1*"),
    ],
)
def test_a_bad_line_is_a_usage_error_with_its_number(
    line: str, complaint: str, project: Project
) -> None:
    result = project.run(write(project, json.dumps(GOOD), line))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {complaint}"])


def test_a_missing_prompts_file_is_a_usage_error(project: Project) -> None:
    result = project.run("--sdopt-prompts", "none.jsonl")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: none.jsonl cannot be read*"])


def test_a_word_that_the_miniature_cannot_generate_is_a_usage_error(project: Project) -> None:
    option = write(project, json.dumps({"name": "a", "prompt": "a red sqare", "seed": 1}))
    result = project.pytester.runpytest("benchmarks", "--sdopt-source=embedded", option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: mine.jsonl:1: unknown prompt word 'sqare'*'square'*"])
