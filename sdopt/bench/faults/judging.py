"""Run a fault through the same measuring and judging as the benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sdopt.bench.faults.fault import Fault, Finding
from sdopt.bench.judge.gate import Gate
from sdopt.bench.judge.verdict import Verdict
from sdopt.bench.metrics.metric import Subject
from sdopt.levels import Level

if TYPE_CHECKING:
    from sdopt.bench.measure import Observation
    from sdopt.bench.measure.latents import ImageAndLatents
    from sdopt.bench.session import Session
    from sdopt.pipelines.pipeline import LevelPipeline


def judge_image_fault(
    fault: Fault, session: Session, level: Level, pipeline: LevelPipeline
) -> Finding:
    """Generate every prompt with the fault inside and compare with the stored images and latents.

    Where they do not show a fault that changes the work as well, the counts of one image have to.
    """
    from sdopt.bench import measure

    with fault.inject(pipeline) as faulty:
        gate = fresh_gate(session.gate)
        _judge_generated(session, gate, level, _generated(session, faulty))
    found = finding(fault, gate.verdicts)
    if found.caught or fault.or_by is None:
        return found
    with fault.inject(pipeline) as faulty:
        seen = measure.observe(faulty, session.run.workload.requests[0])
        gate.work(level, measure.work_of(faulty, seen))
    return finding(replace(fault, caught_by=fault.or_by), gate.verdicts)


def judge_numeric_fault(
    fault: Fault, session: Session, level: Level, pipeline: LevelPipeline
) -> Finding:
    """Judge by all that could see it: images, latents, a second image, the proof of effect."""
    return finding(fault, numeric_verdicts(fault, session, level, pipeline))


def numeric_verdicts(
    fault: Fault, session: Session, level: Level, pipeline: LevelPipeline
) -> list[Verdict]:
    """With the fault inside all prompts are generated, the first of them twice and once watched."""
    from sdopt.bench.measure import compare_latents
    from sdopt.bench.measure.double import double_latents
    from sdopt.bench.measure.latents import generate_with_latents
    from sdopt.bench.measure.repeat import repeat_of

    first = session.run.workload.requests[0]
    gate = fresh_gate(session.gate)
    with fault.inject(pipeline) as faulty:
        generated = _generated(session, faulty)
        again = generate_with_latents(faulty, first)
        double = double_latents(faulty, first)
        _judge_effect(session, gate, level, faulty)
    _judge_generated(session, gate, level, generated)
    if double is not None:
        doubles = {first.name: double}
        kept, missing = session.store.latents(level, doubles, double=True)
        comparison = compare_latents(doubles, kept, Subject.FLOAT64)
        gate.latents_float64(level, comparison, missing)
    gate.repeat(level, repeat_of(first.name, generated[first.name], again))
    return gate.verdicts


def judge_repeat_fault(
    fault: Fault, session: Session, level: Level, pipeline: LevelPipeline
) -> Finding:
    """Generate the first prompt twice with the fault inside."""
    from sdopt.bench.measure.latents import generate_with_latents
    from sdopt.bench.measure.repeat import repeat_of

    first = session.run.workload.requests[0]
    gate = fresh_gate(session.gate)
    with fault.inject(pipeline) as faulty:
        gate.repeat(
            level,
            repeat_of(
                first.name,
                generate_with_latents(faulty, first),
                generate_with_latents(faulty, first),
            ),
        )
    return finding(fault, gate.verdicts)


def judge_optimization_fault(
    fault: Fault, session: Session, level: Level, pipeline: LevelPipeline
) -> Finding:
    """Watch one image with the fault inside, and judge its effect and its work."""
    from sdopt.bench import measure

    request = session.run.workload.requests[0]
    with fault.inject(pipeline) as faulty:
        measure.first_call(faulty, request)  # what the fault itself compiles is not its effect
        gate = fresh_gate(session.gate)
        seen = _judge_effect(session, gate, level, faulty)
        gate.work(level, measure.work_of(faulty, seen))
    return finding(fault, gate.verdicts)


def _generated(session: Session, pipeline: LevelPipeline) -> dict[str, ImageAndLatents]:
    from sdopt.bench.measure.latents import generate_with_latents

    return {
        request.name: generate_with_latents(pipeline, request)
        for request in session.run.workload.requests
    }


def _judge_generated(
    session: Session, gate: Gate, level: Level, generated: Mapping[str, ImageAndLatents]
) -> None:
    from sdopt.bench import measure

    images = {name: one.image for name, one in generated.items()}
    stored, unusable = session.store.images(level, images)
    gate.drift(level, measure.compare(images, stored), unusable)
    latents = {name: one.latents for name, one in generated.items()}
    kept, missing = session.store.latents(level, latents)
    gate.latents(level, measure.compare_latents(latents, kept), missing)


def _judge_effect(
    session: Session, gate: Gate, level: Level, pipeline: LevelPipeline
) -> Observation:
    from sdopt.bench import measure

    request = session.run.workload.requests[0]
    seen = measure.observe(pipeline, request)
    promise = measure.promise_of(session.run.source, level, request, session.run.dtype)
    missing = measure.missing_effects(level, seen, session.run.dtype)
    gate.effect(level, [*missing, *measure.broken_promises(promise, seen)])
    return seen


def fresh_gate(gate: Gate) -> Gate:
    """The run's gate without what it kept; compared with images, limits and work only."""
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
    wanted = {fault.caught_by, *fault.and_by} - {None}
    if not wanted:
        caught = not failed
    else:
        caught = wanted <= {v.metric for v in failed} and any(
            v.metric in wanted and fault.says in v.reason for v in failed
        )
    return Finding(
        id=fault.id,
        caught=caught,
        expected=" and ".join(filter(None, (fault.caught_by, *fault.and_by))) or "nothing",
        seen=("; ".join(map(_short, failed)) or "nothing") + _near(verdicts, wanted),
    )


def _near(verdicts: Sequence[Verdict], wanted: set[str | None]) -> str:
    """The values of those that should have failed, for a reader who asks how far off they were."""
    passed = [v for v in verdicts if v.passed and v.metric in wanted and v.measured is not None]
    return "".join(f" [passed: {_short(verdict)}]" for verdict in passed)


def _short(verdict: Verdict) -> str:
    value = "" if verdict.measured is None else f" {verdict.measured:.6g}"
    limit = "" if verdict.limit is None else f" (limit {verdict.limit:.6g}{_times(verdict)})"
    return f"{verdict.metric}{value}{limit}: {verdict.reason}"


def _times(verdict: Verdict) -> str:
    """How far over its limit a distance is, in words."""
    if (
        not verdict.metric.startswith("latent_drift")
        or not verdict.limit
        or verdict.measured is None
    ):
        return ""
    return f", {verdict.measured / verdict.limit:.3g} times that"
