"""Benchmarks distributed over processes disturb each other, so they are never compared."""

from __future__ import annotations

import pytest
from project import Project

from sdopt.bench.judge.verdict import ExitCode

pytest.importorskip("xdist")


def test_distributed_benchmarks_fail_by_name(stored: Project) -> None:
    stored.fake_latency(1.0)
    result = stored.latency("-n", "1", "--benchmark-compare")
    assert result.ret == ExitCode.FAULT
    result.assert_outcomes(failed=2)
    complaint = "benchmarks are distributed by xdist (-n), so their timings mean nothing; drop it"
    result.stdout.fnmatch_lines([f"*[[]baseline] latency_ms: fault: {complaint}"])
    result.stdout.fnmatch_lines(["FAILED *every stored benchmark is judged*"])
