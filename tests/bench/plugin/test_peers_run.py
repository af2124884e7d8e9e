"""Peers stand in a table at the end of the run, and nowhere in what is judged."""

from __future__ import annotations

import json

import pytest
from project import Project

from studies.peers import contest as contests
from studies.peers.contest import Contest
from studies.peers.recipes import RECIPES, Recipe


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for processes: the eager ones generate in no time, one compiler hangs, one breaks."""

    def run(contest: Contest, recipe: Recipe) -> str | None:
        if recipe.name == "compile-max-autotune":
            return "did not finish in 5 s"
        if recipe.name == "compile-reduce-overhead":
            return "status 1: RuntimeError: no compiler"
        rows = [
            {
                "name": recipe.row_name(ground),
                "rounds_ms": [100.0 if recipe.name == "diffusers" else 40.0],
                "first_call_s": 1.0,
                "peak_allocated_mib": None,
                "peak_reserved_mib": None,
            }
            for ground in recipe.grounds
        ]
        (contest.folder / recipe.rows_file).write_text(json.dumps(rows))
        return None

    monkeypatch.setattr(contests, "version", lambda package: "1.0")
    monkeypatch.setattr(Contest, "_run", run)


def peers(project: Project, *arguments: str) -> pytest.RunResult:
    source = ("--sdopt-source", str(project.source))
    return project.pytester.runpytest("benchmarks/test_peers.py", *source, "-rs", *arguments)


def test_without_the_packages_each_is_skipped_by_name(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contests, "installed", lambda package: False)
    result = peers(project)
    result.assert_outcomes(skipped=len(RECIPES))
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*needs DeepCache: pip install *peers*"])
    result.stdout.no_fnmatch_line("*peers: micro on*")


@pytest.mark.usefixtures("measured")
def test_the_table_stands_at_the_end(project: Project) -> None:
    result = peers(project)
    result.assert_outcomes(passed=len(RECIPES) - 2, skipped=2)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*= peers: micro on *",
            "recipe *sampler, steps *ms *speed-up*",
            "diffusers *100.0 *1.00x*",
            "DeepCache 1.0 *40.0 *2.50x*",
            "sdopt-final *40.0 *2.50x*",
            "compile-max-autotune (dpm-solver++2m, 20): did not finish in 5 s",
        ]
    )
    result.stdout.fnmatch_lines(["SKIPPED * compile-reduce-overhead: status 1: RuntimeError: *"])
    assert not (project.path / "verdicts.json").exists()


@pytest.mark.usefixtures("measured")
def test_a_level_that_cannot_be_measured_fails(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Contest, "_run", lambda contest, recipe: "status 1: it broke")
    result = peers(project, "-k", "sdopt-final")
    result.assert_outcomes(failed=1, deselected=len(RECIPES) - 1)


@pytest.mark.usefixtures("measured")
def test_no_history_and_no_completeness_check_knows_them(stored: Project) -> None:
    (path,) = stored.histories()
    assert "test_peers" not in path.read_text()
    result = peers(stored, "--benchmark-compare", "-k", "diffusers")
    result.assert_outcomes(passed=2, deselected=len(RECIPES) - 1)
    assert result.ret == 0


@pytest.mark.usefixtures("measured")
def test_a_wrong_time_limit_is_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDOPT_PEERS_LIMIT_S", "soon")
    result = peers(project, "-k", "diffusers")
    result.assert_outcomes(errors=1, deselected=len(RECIPES) - 1)
    result.stdout.fnmatch_lines(["*SDOPT_PEERS_LIMIT_S is 'soon'; it is a number of seconds*"])
