"""Benchmarks distributed over processes disturb each other, so they are never compared."""

from __future__ import annotations

import pytest
from project import Project

pytest.importorskip("xdist")

# What a worker measures does not matter here; without a pipeline it starts sooner.
BENCHMARK = """
from sdopt.measure.timing import FirstCall, Latency

def test_latency(level, gate):
    record = Latency(rounds_ms=(1.0,), stage_ms={})
    verdict = gate.latency(level, record, FirstCall(seconds=1.0, compile_cache="eager"))
    assert verdict.passed, verdict.message
"""


def test_distributed_benchmarks_fail_by_name(stored: Project) -> None:
    (stored.path / "benchmarks" / "test_latency.py").write_text(BENCHMARK)
    result = stored.latency("-n", "2", "--benchmark-compare")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=2)
    complaint = "benchmarks are distributed by xdist (-n), so their timings mean nothing; drop it"
    result.stdout.fnmatch_lines([f"*[[]baseline] latency_ms: fault: {complaint}"])
    result.stdout.fnmatch_lines(["FAILED *every stored benchmark is judged*"])
