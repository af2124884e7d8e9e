"""Run a fault through the same measuring and judging as the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sdopt.gate import Gate
from sdopt.levels import Level
from sdopt.selftest.fault import Fault, Finding
from sdopt.verdict import Verdict

if TYPE_CHECKING:
    from sdopt.pipeline import LevelPipeline
    from sdopt.suite import Suite


def judge_picture_fault(
    fault: Fault, suite: Suite, level: Level, pipeline: LevelPipeline
) -> Finding:
    """Draw every prompt with the fault inside and compare with the stored pictures.

    Where they do not show a fault that changes the work as well, the counts of one picture have to.
    """
    from sdopt import measure
    from sdopt.workload import generate

    requests = suite.workload.requests
    with fault.inject(pipeline) as faulty:
        pictures = {request.name: generate(faulty, request) for request in requests}
    gate = fresh_gate(suite.gate)
    stored, unusable = suite.stored_pictures(level, pictures)
    gate.drift(level, measure.compare(pictures, stored), unusable)
    found = finding(fault, gate.verdicts)
    if found.caught or fault.or_by is None:
        return found
    with fault.inject(pipeline) as faulty:
        seen = measure.observe(faulty, requests[0])
        gate.work(level, measure.work_of(faulty, seen))
    return finding(replace(fault, caught_by=fault.or_by), gate.verdicts)


def judge_optimization_fault(
    fault: Fault, suite: Suite, level: Level, pipeline: LevelPipeline
) -> Finding:
    """Watch one picture with the fault inside, and judge its effect and its work."""
    from sdopt import measure

    request = suite.workload.requests[0]
    with fault.inject(pipeline) as faulty:
        measure.first_call(faulty, request)  # what the fault itself compiles is not its effect
        seen = measure.observe(faulty, request)
        gate = fresh_gate(suite.gate)
        gate.effect(level, measure.missing_effects(level, seen, suite.dtype))
        gate.work(level, measure.work_of(faulty, seen))
    return finding(fault, gate.verdicts)


def fresh_gate(gate: Gate) -> Gate:
    """The run's gate without what it kept; compared with pictures, limits and work only."""
    return Gate(
        device=gate.device,
        limits=gate.limits,
        limits_file=gate.limits_file,
        work_stored=gate.work_stored,
        work_file=gate.work_file,
    )


def finding(fault: Fault, verdicts: Sequence[Verdict]) -> Finding:
    """Whether the fault was caught by the verdict that has to; a control by none."""
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if fault.caught_by is None:
        caught = not failed
    else:
        caught = any(v.metric == fault.caught_by and fault.says in v.reason for v in failed)
    return Finding(
        id=fault.id,
        caught=caught,
        expected=fault.caught_by or "nothing",
        seen="; ".join(_short(verdict) for verdict in failed) or "nothing",
    )


def _short(verdict: Verdict) -> str:
    value = "" if verdict.measured is None else f" {verdict.measured:.6g}"
    limit = "" if verdict.limit is None else f" (limit {verdict.limit:.6g})"
    return f"{verdict.metric}{value}{limit}: {verdict.reason}"
