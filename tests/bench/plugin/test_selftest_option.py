"""--sdopt-selftest runs the faults as tests and fails if one is missed."""

from __future__ import annotations

from typing import Any

import pytest
from project import Project

from sdopt.bench.faults.fault import Finding
from sdopt.bench.plugin import selftest


def found(caught: bool) -> Any:
    return lambda *_: Finding(id="a fault", caught=caught, expected="exit 2", seen="exit 0")


@pytest.mark.parametrize(("caught", "code"), [(True, 0), (False, 1)])
def test_a_missed_fault_fails(
    caught: bool, code: int, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = ("optimization", "image", "request", "round", "engine", "harness")
    for name in (f"{group}_faults" for group in groups):
        monkeypatch.setattr(selftest, name, list)
    monkeypatch.setattr(selftest, "judge_saving_at_once", found(caught))
    monkeypatch.setattr(selftest, "prepared", lambda folder, benchmarks: Folder(folder))
    result = project.run("--sdopt-selftest", "-k", "saving")
    assert result.ret == code
    result.stdout.fnmatch_lines(
        [f"| a fault | exit 2 | {'yes' if caught else '[*][*]no[*][*]'} | exit 0 |"]
    )
    if not caught:
        result.stdout.fnmatch_lines(["a fault: expected exit 2, seen exit 0"])


def test_a_folder_that_cannot_be_made_is_tried_once_and_its_faults_were_not_caught(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []

    def failing(folder: Any, benchmarks: Any) -> Any:
        tried.append(folder)
        raise RuntimeError("the run failed:\nwith much output")

    monkeypatch.setattr(selftest, "prepared", failing)
    result = project.run("--sdopt-selftest", "-k", "empty or removed")
    assert result.ret == 1
    for name in ("a benchmark removed", "an empty history"):
        result.stdout.fnmatch_lines([f"| harness: {name} | a verdict | *no* | the run failed: |"])
    result.stdout.fnmatch_lines(["harness: 0 of 2 right*"])
    assert len(tried) == 1


class Folder:
    def __init__(self, path: Any) -> None:
        self.path = path


def test_k_picks_from_the_faults_and_those_that_want_the_gpu_alone_come_first(
    project: Project,
) -> None:
    result = project.run("--sdopt-selftest", "--collect-only", "-q", "-k", "bright or renamed")
    result.stdout.fnmatch_lines(["*harness: a benchmark renamed", "*image: bright corner"])
