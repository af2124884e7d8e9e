"""Options of pytest-benchmark that would weaken the gate are refused."""

from __future__ import annotations

import pytest
from project import Project


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        (
            "--benchmark-compare-fail=mean:5%",
            "ERROR: --benchmark-compare-fail cannot see memory or pictures *drop it*",
        ),
        (
            "--benchmark-storage=elsewhere",
            "ERROR: --benchmark-storage elsewhere: *choose their folder with --sdopt-baselines DIR",
        ),
    ],
)
def test_an_option_that_weakens_the_gate_is_a_usage_error(
    option: str, complaint: str, project: Project
) -> None:
    result = project.run(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([complaint])


def test_running_without_pytest_benchmark_is_a_usage_error(project: Project) -> None:
    result = project.run("-p", "no:benchmark")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: sdopt needs pytest-benchmark; drop -p no:benchmark"])


def test_only_our_folder_is_written(stored: Project) -> None:
    stored.latency("--benchmark-autosave").assert_outcomes(passed=1)
    assert len(stored.histories()) == 2
    assert not (stored.path / ".benchmarks").exists()


def test_pytest_benchmarks_own_json_still_works(project: Project) -> None:
    project.latency("--benchmark-json=run.json").assert_outcomes(passed=1)
    assert '"baseline_set": "micro"' in (project.path / "run.json").read_text()


def test_help_states_each_option_and_its_default(project: Project) -> None:
    result = project.pytester.runpytest("--help", f"--sdopt-source={project.source}")
    lines = result.stdout.str()
    _, _, group = lines.partition("optimization levels of Stable Diffusion 1.5:")
    options = group.partition("\n\n")[0].split("--sdopt-")[1:]
    assert [option.split()[0].partition("=")[0] for option in options] == [
        *("source", "prompts", "baselines", "accept", "ab", "selftest", "compile-cache")
    ]
    assert [option for option in options if "(default: " not in " ".join(option.split())] == []
