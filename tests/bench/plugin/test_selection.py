"""Every benchmark runs at every level, and -k picks a level."""

from __future__ import annotations

import pytest
from project import Project

from sdopt.levels import LEVELS
from studies.peers import RECIPES

TESTS = (
    "test_latency.py::test_latency",
    "test_memory.py::test_memory",
    "test_quality.py::test_cost",
    "test_quality.py::test_drift",
    "test_quality.py::test_ground_truth",
    "test_quality.py::test_latents",
    "test_quality.py::test_latents_float64",
    "test_quality.py::test_repeat",
    "test_work.py::test_effect",
    "test_work.py::test_work",
)


def collected(result: pytest.RunResult) -> list[str]:
    return sorted(line for line in result.outlines if line.startswith("benchmarks/"))


def test_every_benchmark_runs_at_every_level(project: Project) -> None:
    result = project.pytester.runpytest(
        "benchmarks", "--collect-only", "-q", "--sdopt-source", str(project.source)
    )
    expected = [f"benchmarks/{test}[{level}]" for test in TESTS for level in LEVELS]
    beside = [f"benchmarks/test_peers.py::test_peer[{recipe}]" for recipe in RECIPES]
    assert collected(result) == sorted([*expected, *beside])


@pytest.mark.parametrize("level", LEVELS)
def test_k_picks_exactly_one_level(level: str, project: Project) -> None:
    result = project.run("--collect-only", "-q", level=level)
    assert collected(result) == [f"benchmarks/{test}[{level}]" for test in TESTS]


def test_what_needs_cuda_says_so(project: Project) -> None:
    result = project.run("-rs", tests="benchmarks/test_memory.py")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED * needs CUDA: the CPU has no such counter"])


def test_a_level_is_built_once_for_all_its_benchmarks(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdopt.pipelines import pipeline

    built, build = [], pipeline.build

    def counted(*arguments: object) -> object:
        built.append(arguments[1])
        return build(*arguments)

    monkeypatch.setattr(pipeline, "build", counted)
    result = project.pytester.runpytest(
        "benchmarks/test_work.py",
        *("-k", "[baseline] or [tuned]", "--sdopt-source", str(project.source)),
        "--sdopt-accept",
    )
    result.assert_outcomes(passed=4)
    # Each once more for the second request on a fresh pipeline.
    assert [level.name for level in built] == ["baseline"] * 2 + ["tuned"] * 2


def test_a_level_that_does_not_exist_is_named_with_the_choices(project: Project) -> None:
    result = project.run(level="turob")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*unknown level 'turob' (did you mean 'turbo'[?]); choose from: *"]
    )


def test_what_is_no_level_may_select_nothing(project: Project) -> None:
    assert project.pytester.runpytest("benchmarks", "-k", "nothing").ret == 5
