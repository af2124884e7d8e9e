"""--sdopt-ab turns the selected levels into paired comparisons, with verdicts and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from project import Project

import sdopt.bench.ab
from sdopt.bench.ab import LevelPair, Result, SideSample, Spec
from sdopt.bench.stored.baselines import save_work
from sdopt.errors import RevisionError

Verdicts = Callable[..., Any]


def scripted(ratio: float, spread: float = 0.001, **fields: Any) -> Callable[..., Result]:
    """Pairs in which the head takes that much of the base's time, more or less."""

    def run_pairs(spec: Spec, judge: Verdicts, progress: object) -> Result:
        pairs: list[LevelPair] = []
        verdict = None
        while verdict is None:
            number = len(pairs) + 1
            noise = 1 + spread * (number % 3 - 1)
            sides = [
                SideSample(rounds_ms=(100.0 * by,) * 12, first_call_s=1.0, peak_allocated_mib=None)
                for by in (1.0, ratio * noise)
            ]
            pairs.append(
                LevelPair(
                    level="baseline",
                    pair=number,
                    first="base",
                    block_rounds=1,
                    base=sides[0],
                    head=sides[1],
                )
            )
            base = [pair.metrics["latency_ms"][0] for pair in pairs]
            head = [pair.metrics["latency_ms"][1] for pair in pairs]
            verdict = judge("baseline", "latency_ms", base, head)
        return Result(device="cpu", verdicts=(verdict,), pairs=tuple(pairs), **fields)

    return run_pairs


@pytest.fixture
def compared(project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.RunResult]:
    """Run with --sdopt-ab; the pairs are scripted, the checkout is left out."""

    @contextmanager
    def checked_out(repository: Path, revision: str) -> Any:
        assert repository == project.path
        if revision == "nowhere":
            raise RevisionError("there is no revision 'nowhere'; give a branch, tag or commit")
        yield repository

    monkeypatch.setattr(sdopt.bench.ab, "checked_out", checked_out)

    def run(ratio: float, *options: str, **fields: Any) -> pytest.RunResult:
        monkeypatch.setattr(sdopt.bench.ab, "run_pairs", scripted(ratio, **fields))
        return project.run(*(options or ("--sdopt-ab=main",)))

    return run


def written(project: Project) -> dict[str, Any]:
    return dict(json.loads((project.path / "verdicts.json").read_text()))


def test_an_unchanged_head_passes(compared: Any, project: Project) -> None:
    result = compared(1.0)
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["*main against the working tree*", "[[]baseline] latency_ms: pass: * in 4 pairs of fresh*"]
    )
    run = written(project)["run"]
    assert (run["base"], len(run["pairs"])) == ("main", 4)
    assert run["pairs"][0]["head_rounds_ms"] == [pytest.approx(100.0)] * 12


def test_a_slower_head_is_a_regression_by_level_and_metric(compared: Any, project: Project) -> None:
    result = compared(1.05)
    result.assert_outcomes(failed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "*[[]baseline] latency_ms: regression: +5*",
            "*measured 105* ms, stored 100 ms",
            "*next: git diff main -- sdopt  # what made it so",
        ]
    )
    (verdict,) = written(project)["verdicts"]
    assert (verdict["outcome"], verdict["level"], verdict["passed"]) == (
        "regression",
        "baseline",
        False,
    )


def test_noise_is_insufficient_data(compared: Any) -> None:
    result = compared(1.0, spread=0.3)
    assert result.ret == 10
    result.stdout.fnmatch_lines(
        ["*latency_ms: insufficient data: *", '*next: pytest benchmarks/ * --sdopt-ab=main -k "*"*']
    )


def test_a_faster_head_is_an_improvement(compared: Any) -> None:
    result = compared(0.9)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["[[]baseline] latency_ms: improvement: -*"])


COUNTS = {"unet_evaluations": 60, "tflop": 1.0}
MORE = {"unet_evaluations": 62, "tflop": 1.1}


@pytest.mark.parametrize(("base", "head"), [(COUNTS, MORE), (MORE, COUNTS)])
def test_other_work_is_a_regression_as_in_any_run(base: Any, head: Any, compared: Any) -> None:
    result = compared(1.0, work={"baseline": {"base": base, "head": head}})
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["*unet_evaluations: regression: has to equal*", "*--sdopt-accept  # if the new work is*"]
    )


@pytest.mark.parametrize(("base", "head"), [(COUNTS, MORE), (MORE, COUNTS)])
def test_work_that_the_working_tree_accepted_passes(
    base: Any, head: Any, compared: Any, project: Project
) -> None:
    save_work(project.work_file, "baseline", head)
    result = compared(1.0, work={"baseline": {"base": base, "head": head}})
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*unet_evaluations: pass: changed as it was accepted: 6? -> 6?*"])


def test_new_and_redefined_levels_are_told(compared: Any, project: Project) -> None:
    result = compared(1.0, redefined={"baseline": "steps 30 -> 20"}, removed=("old",))
    result.stdout.fnmatch_lines(
        ["[[]baseline] was redefined: steps 30 -> 20", "[[]old] is gone: main has it"]
    )
    assert written(project)["run"]["removed"] == ["old"]


def test_junit_has_the_verdicts_of_pairs(compared: Any, project: Project) -> None:
    counts = {"unet_evaluations": 60, "tflop": 1.0}
    work = {"baseline": {"base": counts, "head": counts}}
    compared(1.05, "--sdopt-ab=main", "--junit-xml=junit.xml", work=work)
    whole = ElementTree.parse(project.path / "junit.xml")
    properties = {one.get("name"): one.get("value") for one in whole.iter("property")}
    assert properties == {
        "sdopt_outcome": "regression",
        "sdopt latency_ms": "regression",
        "sdopt unet_evaluations": "pass",
        "sdopt tflop": "pass",
    }
    (case,) = whole.iter("testcase")
    assert case.get("name") == "main against the working tree [baseline]"
    (failure,) = whole.iter("failure")
    assert "latency_ms: regression: +5" in (failure.text or "")


def test_an_unknown_revision_breaks_the_run(compared: Any) -> None:
    result = compared(1.0, "--sdopt-ab=nowhere")
    assert result.ret == 2
    result.stdout.fnmatch_lines(["there is no revision 'nowhere'; give a branch, tag or commit"])


@pytest.mark.parametrize("other", ["--benchmark-compare", "--sdopt-accept", "--sdopt-selftest"])
def test_other_ways_to_measure_are_refused(other: str, project: Project) -> None:
    result = project.run("--sdopt-ab=main", other)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--sdopt-ab cannot be combined with {other}; drop one"])
