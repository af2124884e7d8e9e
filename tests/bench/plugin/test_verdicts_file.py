"""verdicts.json holds every verdict of a run for other programs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from project import Project, set_latency

from sdopt.bench.judge.verdict import ExitCode, Outcome, Verdict
from sdopt.bench.report.verdicts import SCHEMA, as_dict, write_verdicts

FIELDS = {
    *("level", "metric", "outcome", "passed", "reason", "measured", "stored", "limit"),
    *("detectable", "runs", "file", "next_step"),
}


def verdict(measured: float | None = 1.0, limit: float | None = None) -> Verdict:
    return Verdict(
        level="final",
        metric="latency_ms",
        outcome=Outcome.REGRESSION,
        reason="why",
        measured=measured,
        limit=limit,
    )


def test_a_verdict_is_plain_data() -> None:
    assert as_dict(verdict()) == {
        "level": "final",
        "metric": "latency_ms",
        "outcome": "regression",
        "passed": False,
        "reason": "why",
        "measured": 1.0,
        "stored": None,
        "limit": None,
        "detectable": None,
        "runs": None,
        "file": None,
        "next_step": "",
    }


def test_a_number_that_json_cannot_hold_becomes_text(tmp_path: Path) -> None:
    path = tmp_path / "new" / "verdicts.json"
    write_verdicts(path, [verdict(math.nan, math.inf)], ExitCode.FAULT, ["a::b"], {"source": "x"})
    content = json.loads(path.read_text())
    (written,) = content.pop("verdicts")
    assert (written["measured"], written["limit"], written["stored"]) == ("nan", "inf", None)
    assert content == {
        "schema": SCHEMA,
        "exit_code": 2,
        "outcome": "fault",
        "run": {"source": "x"},
        "failed_without_verdict": ["a::b"],
    }


def test_every_verdict_of_a_run_is_written(stored: Project) -> None:
    result = stored.run("--benchmark-compare")
    assert result.ret == ExitCode.PASS
    content = stored.verdicts()
    assert (content["schema"], content["exit_code"], content["outcome"]) == (SCHEMA, 0, "pass")
    assert content["failed_without_verdict"] == []
    assert {verdict["metric"]: verdict["outcome"] for verdict in content["verdicts"]} == {
        "latency_ms": "improvement",
        "graphs_in_rounds": "pass",
        "ssim_drift": "pass",
        "block_drift": "pass",
        "latent_drift": "pass",
        "latent_drift_float64": "pass",
        "repeat": "pass",
        "effect": "pass",
        "recompiles": "pass",
        "graph_breaks": "pass",
        "unet_evaluations": "pass",
        "tflop": "pass",
    }
    assert all(set(verdict) == FIELDS for verdict in content["verdicts"])
    assert {verdict["level"] for verdict in content["verdicts"]} == {"baseline"}


def test_the_run_says_what_it_was_of(stored: Project) -> None:
    stored.run(tests="benchmarks/test_work.py")
    run = stored.verdicts()["run"]
    history = json.loads(stored.histories()[0].read_text())["sdopt"]
    same = ("schema", "hardware", "baseline_set", "source", "environment")
    assert {name: run[name] for name in same} == {name: history[name] for name in same}
    assert run["judged"] == [
        "benchmarks/test_work.py::test_effect[baseline]",
        "benchmarks/test_work.py::test_work[baseline]",
    ]


def test_a_regression_holds_what_its_message_holds(stored: Project) -> None:
    path = stored.edit_history(set_latency(100.0))
    stored.fake_latency(1000.0)
    stored.latency("--benchmark-compare")
    content = stored.verdicts()
    assert (content["exit_code"], content["outcome"]) == (1, "regression")
    (found,) = content["verdicts"]
    assert (found["measured"], found["stored"]) == (1000.0, pytest.approx(100.0))
    assert (found["runs"], found["file"], found["passed"]) == (1, str(path), False)
    assert 100.0 < found["limit"] < 1000.0
    assert 0 < found["detectable"] < 9
    assert "may be chance" in found["reason"]
    assert "--sdopt-ab=" in found["next_step"]


def test_each_run_replaces_the_file(stored: Project) -> None:
    stored.fake_latency(100.0)
    stored.run(tests="benchmarks/test_work.py")
    stored.latency()
    metrics = [verdict["metric"] for verdict in stored.verdicts()["verdicts"]]
    assert metrics == ["latency_ms"]


def test_only_a_run_of_benchmarks_replaces_the_file(stored: Project) -> None:
    stored.fake_latency(100.0)
    stored.latency()
    before = (stored.path / "verdicts.json").read_bytes()
    assert stored.latency("--collect-only").ret == 0
    assert (stored.path / "verdicts.json").read_bytes() == before
    assert stored.run("-k", "nothing").ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert stored.verdicts()["outcome"] == "unfinished"
