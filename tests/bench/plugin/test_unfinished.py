"""A run that reaches no verdict leaves no verdict of an earlier run behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from project import BENCHMARKS, Project

from sdopt.bench.plugin import unfinished
from sdopt.bench.report.verdicts import SCHEMA
from sdopt.util.children import python_path

CLONE = BENCHMARKS.parent
OLD = json.dumps({"outcome": "pass", "exit_code": 0})
INI = "[pytest]\naddopts = -p no:cacheprovider --import-mode=importlib\ntestpaths = tests\n"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The project without its weights, and the verdicts of a run that passed."""
    without = shutil.ignore_patterns("__pycache__", "model")
    for name in ("sdopt", "benchmarks"):
        shutil.copytree(CLONE / name, tmp_path / name, ignore=without)
    shutil.copy(CLONE / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text(INI)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_one.py").write_text("def test_one():\n    assert True\n")
    (tmp_path / "verdicts.json").write_text(OLD)
    return tmp_path


def run(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest in a process that imports the clone's own package."""
    command = (sys.executable, "-m", "pytest", *arguments)
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": python_path(clone)}
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)


def verdicts(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "verdicts.json").read_text())
    return content


UNFINISHED = {
    "schema": SCHEMA,
    "exit_code": None,
    "outcome": "unfinished",
    "run": {},
    "failed_without_verdict": [],
    "verdicts": [],
}


def syntax_error(name: str) -> Callable[[Path], None]:
    def change(clone: Path) -> None:
        path = clone / "sdopt" / name
        path.write_text(path.read_text() + "this is no Python\n")

    return change


def row_removed(clone: Path) -> None:
    """A level that other modules resolve when they are imported."""
    path = clone / "sdopt" / "levels.py"
    path.write_text(path.read_text() + "\ndel LEVELS['final']\n")


@pytest.mark.parametrize(
    "change",
    [syntax_error("bench/judge/gate.py"), syntax_error("errors.py"), row_removed],
    ids=["gate", "errors", "row"],
)
def test_a_plugin_that_cannot_be_loaded_leaves_no_old_verdict(
    change: Callable[[Path], None], clone: Path
) -> None:
    change(clone)
    result = run(clone, "benchmarks/", "--benchmark-compare")
    assert result.returncode == pytest.ExitCode.INTERNAL_ERROR == 3, result.stderr
    assert "Error while loading plugin" in result.stderr
    assert verdicts(clone) == UNFINISHED


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("benchmarks/test_work.py", "--no-such-option"), pytest.ExitCode.USAGE_ERROR),
        ((".", "-k", "nothing"), pytest.ExitCode.NO_TESTS_COLLECTED),
    ],
)
def test_a_run_that_ends_early_leaves_no_old_verdict(
    arguments: tuple[str, ...], code: int, clone: Path
) -> None:
    assert run(clone, *arguments, "--sdopt-source=sd15-random").returncode == code
    assert verdicts(clone) == UNFINISHED


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("tests/test_one.py::test_one",),
        ("benchmarks/", "--collect-only", "-q"),
        ("benchmarks/", "--setup-plan", "-q"),
        ("benchmarks/", "--fixtures", "-q"),
        ("benchmarks/", "--help"),
    ],
)
def test_what_runs_no_benchmark_leaves_the_file_alone(
    arguments: tuple[str, ...], clone: Path
) -> None:
    result = run(clone, *arguments, "--sdopt-source=sd15-random")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (clone / "verdicts.json").read_text() == OLD


def test_a_file_that_cannot_be_replaced_stops_the_run(clone: Path) -> None:
    (clone / "verdicts.json").unlink()
    (clone / "verdicts.json").mkdir()
    (clone / "verdicts.json" / "full").touch()
    result = run(clone, "benchmarks/")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "verdicts.json cannot be written" in result.stderr
    assert sorted(path.name for path in clone.glob("*.partial")) == []


def test_both_modules_write_the_same_schema() -> None:
    assert unfinished.SCHEMA == SCHEMA


@pytest.mark.parametrize("file", ["benchmarks/test_latency.py", "test_elsewhere.py"])
def test_an_interrupted_run_leaves_no_old_verdict(file: str, project: Project) -> None:
    (project.path / "verdicts.json").write_text(OLD)
    (project.path / file).write_text("def test_gate(level, gate):\n    raise KeyboardInterrupt\n")
    source = f"--sdopt-source={project.source}"
    result = project.pytester.runpytest_subprocess(file, "-k", "[baseline]", source)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert verdicts(project.path) == UNFINISHED
