"""A run ends with 0 pass, 1 regression, 2 fault, 10 insufficient data; JUnit says it in words."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from project import Project, set_latency

from sdopt.bench.judge.verdict import ExitCode

BUSY = ("process 77 used the GPU too",)


@pytest.fixture
def judged(stored: Project) -> Project:
    """A project whose stored run took 100 ms an image."""
    stored.edit_history(set_latency(100.0))
    return stored


def compared(project: Project, *arguments: str) -> pytest.RunResult:
    return project.latency("--benchmark-compare", *arguments)


@pytest.mark.parametrize("milliseconds", [100.0, 10.0])
def test_as_good_or_better_is_0(milliseconds: float, judged: Project) -> None:
    judged.fake_latency(milliseconds)
    assert compared(judged).ret == ExitCode.PASS == 0


def test_recorded_without_a_comparison_is_0(judged: Project) -> None:
    judged.fake_latency(1000.0)
    assert judged.latency().ret == ExitCode.PASS


def test_slower_is_1(judged: Project) -> None:
    judged.fake_latency(1000.0)
    assert compared(judged).ret == ExitCode.REGRESSION == 1


def test_a_value_that_means_nothing_is_2(judged: Project) -> None:
    judged.fake_latency("float('nan')")
    assert compared(judged).ret == ExitCode.FAULT == 2


@pytest.mark.parametrize("options", [(), ("--benchmark-compare",)])
def test_a_void_measurement_is_10(options: tuple[str, ...], judged: Project) -> None:
    judged.fake_latency(100.0, disturbances=BUSY)
    result = judged.latency(*options)
    assert result.ret == ExitCode.INSUFFICIENT == 10
    result.assert_outcomes(failed=1, passed=len(options))
    result.stdout.fnmatch_lines(
        [
            "*[[]baseline] latency_ms: insufficient data: the measurement is void: process 77 *",
            "*next: * --benchmark-compare  # on a device that nothing else uses*",
            "baseline*FAIL latency_ms",
        ]
    )


@pytest.mark.parametrize(
    ("milliseconds", "disturbances", "code"),
    [
        (1000.0, (), ExitCode.REGRESSION),
        (100.0, BUSY, ExitCode.FAULT),
        (100.0, (), ExitCode.FAULT),
    ],
)
def test_a_regression_outranks_a_fault_and_a_fault_insufficient_data(
    milliseconds: float, disturbances: tuple[str, ...], code: ExitCode, judged: Project
) -> None:
    judged.fake_latency(milliseconds, disturbances)
    (judged.images / "castle.png").unlink()
    assert judged.run("--benchmark-compare").ret == code


def append(project: Project, text: str) -> None:
    path = project.path / "benchmarks" / "test_latency.py"
    path.write_text(path.read_text() + text)


BROKEN = """
def test_broken(level, gate):
    raise RuntimeError("no verdict")
"""
BROKEN_SETUP = """
import pytest

@pytest.fixture
def broken():
    raise RuntimeError("no verdict")

def test_broken(level, broken, gate):
    pass
"""
BROKEN_TEARDOWN = """
import pytest

@pytest.fixture
def broken():
    yield
    raise RuntimeError("no verdict")

def test_broken(level, broken, gate):
    pass
"""


@pytest.mark.parametrize("text", [BROKEN, BROKEN_SETUP, BROKEN_TEARDOWN])
@pytest.mark.parametrize(
    ("milliseconds", "disturbances", "code"),
    [
        (100.0, (), ExitCode.FAULT),
        (100.0, BUSY, ExitCode.FAULT),
        (1000.0, (), ExitCode.REGRESSION),
    ],
)
def test_a_test_that_failed_without_a_verdict_is_a_fault(
    text: str,
    milliseconds: float,
    disturbances: tuple[str, ...],
    code: ExitCode,
    judged: Project,
) -> None:
    judged.fake_latency(milliseconds, disturbances)
    append(judged, text)
    assert compared(judged).ret == code
    (node_id,) = judged.verdicts()["failed_without_verdict"]
    assert node_id == "benchmarks/test_latency.py::test_broken[baseline]"


def test_a_good_verdict_does_not_hide_what_failed_after_it(judged: Project) -> None:
    judged.fake_latency(100.0)
    append(judged, "    raise RuntimeError('after the verdict')\n")
    assert compared(judged).ret == ExitCode.FAULT
    (node_id,) = judged.verdicts()["failed_without_verdict"]
    assert node_id == "benchmarks/test_latency.py::test_latency[baseline]"


def test_a_benchmark_that_is_gone_is_a_fault(judged: Project) -> None:
    judged.fake_latency(100.0)
    judged.edit_benchmark("test_latency.py", "def test_", "def helper_")
    assert compared(judged).ret == ExitCode.FAULT
    (name,) = judged.verdicts()["failed_without_verdict"]
    assert "every stored benchmark is judged" in name


def test_pytests_own_codes_stand(judged: Project) -> None:
    judged.fake_latency(100.0)
    assert compared(judged, "--no-such-option").ret == pytest.ExitCode.USAGE_ERROR == 4
    assert judged.run("-k", "nothing").ret == pytest.ExitCode.NO_TESTS_COLLECTED == 5
    append(judged, "this is no Python\n")
    assert judged.latency().ret == pytest.ExitCode.INTERRUPTED == 2


@pytest.mark.parametrize(("text", "code"), [("assert 1", 0), ("assert 0", 1)])
def test_other_tests_end_as_pytest_ends_them(text: str, code: int, project: Project) -> None:
    project.pytester.makepyfile(test_other=f"def test_other():\n    {text}")
    result = project.pytester.runpytest("test_other.py", f"--sdopt-source={project.source}")
    assert result.ret == code
    assert not (project.path / "verdicts.json").exists()


def properties(path: Path) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Those of a JUnit file: of the whole run, and by test."""

    def of(element: ElementTree.Element) -> dict[str, str]:
        found = element.findall("properties/property")
        return {each.attrib["name"]: each.attrib["value"] for each in found}

    (suite,) = ElementTree.parse(path).getroot().findall("testsuite")
    return of(suite), {case.attrib["name"]: of(case) for case in suite.findall("testcase")}


@pytest.mark.parametrize(
    ("milliseconds", "disturbances", "word", "outcome"),
    [
        (100.0, (), "pass", "pass"),
        (10.0, (), "improvement", "pass"),
        (1000.0, (), "regression", "regression"),
        (-1.0, (), "fault", "fault"),
        (100.0, BUSY, "insufficient data", "insufficient"),
    ],
)
def test_junit_tells_a_regression_from_a_fault(
    milliseconds: float,
    disturbances: tuple[str, ...],
    word: str,
    outcome: str,
    judged: Project,
) -> None:
    judged.fake_latency(milliseconds, disturbances)
    compared(judged, "--junit-xml=junit.xml")
    whole, by_test = properties(judged.path / "junit.xml")
    assert whole == {"sdopt_outcome": outcome}
    assert by_test["test_latency[baseline]"] == {"sdopt latency_ms": word}


def test_junit_has_a_property_for_each_verdict(stored: Project) -> None:
    stored.run("--junit-xml=junit.xml", tests="benchmarks/test_work.py")
    _, by_test = properties(stored.path / "junit.xml")
    assert by_test == {
        "test_effect[baseline]": {"sdopt effect": "pass"},
        "test_work[baseline]": {
            "sdopt recompiles": "pass",
            "sdopt graph_breaks": "pass",
            "sdopt unet_evaluations": "pass",
            "sdopt tflop": "pass",
        },
    }
