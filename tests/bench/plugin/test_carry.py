"""`-p sdopt.bench.plugin.carry` puts $SDOPT_FAULT into every pipeline and stores nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from project import Project, scale_latency

from sdopt.bench.judge.verdict import ExitCode

CARRY = ("-p", "sdopt.bench.plugin.carry")
BANNER = "sdopt: FAULT CARRIED ON PURPOSE: host:30"


@pytest.fixture
def carrying(stored: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Each image 30 times its time."""
    monkeypatch.setenv("SDOPT_FAULT", "host:30")
    return stored


def test_the_gate_sees_the_fault_and_the_run_says_that_it_was_carried(carrying: Project) -> None:
    carrying.edit_history(scale_latency(1 / 10))  # what was measured
    stored_before = carrying.histories()
    result = carrying.latency("--benchmark-compare", *CARRY)
    assert result.ret == ExitCode.REGRESSION
    result.stdout.fnmatch_lines(
        [BANNER, "*latency_ms: regression*", "*carried host:30 on purpose; nothing was stored*"]
    )
    assert carrying.verdicts()["run"]["fault"] == "host:30"
    assert carrying.histories() == stored_before


def test_without_the_plugin_the_variable_does_nothing(carrying: Project) -> None:
    result = carrying.latency("--benchmark-compare")
    assert result.ret == ExitCode.PASS
    assert "FAULT" not in result.stdout.str()
    assert "fault" not in carrying.verdicts()["run"]


@pytest.mark.parametrize(
    "option",
    [
        "--sdopt-accept",
        "--benchmark-autosave",
        "--benchmark-save=faulty",
        "--sdopt-selftest",
        "--sdopt-ab=HEAD",
    ],
)
def test_it_refuses_to_store(carrying: Project, option: str) -> None:
    stored_before = carrying.histories()
    result = carrying.latency(option, *CARRY)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*cannot be combined with {option.partition('=')[0]}; drop one*"])
    assert carrying.histories() == stored_before


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("", "*SDOPT_FAULT: unknown fault ''*loop*"),
        ("brake:0.1", "*unknown fault 'brake'*loop*"),
        ("loop:much", "*'much' is no number*"),
        ("loop:0", "*above 0 and finite*"),
    ],
)
def test_a_bad_fault_is_named(
    project: Project, fault: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDOPT_FAULT", fault)
    result = project.latency(*CARRY)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([complaint])


def test_effects_and_work_are_judged_as_without_it(
    stored: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDOPT_FAULT", "loop:0.1")
    stored.edit_history(scale_latency(100))
    stored.run(*CARRY, tests="benchmarks/test_work.py").assert_outcomes(passed=2)


def test_it_can_be_loaded_before_a_conftest_names_the_suites_plugin(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDOPT_FAULT", "host:30")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    source = f"--sdopt-source={project.source}"
    strict = ("-W", "error::pytest.PytestAssertRewriteWarning")
    result = project.pytester.runpytest_subprocess("--collect-only", source, *strict, *CARRY)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines([BANNER])
