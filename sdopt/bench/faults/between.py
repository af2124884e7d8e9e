"""Faults between images: something is kept from an earlier request, compiled late, or leaked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import TYPE_CHECKING, Any

import torch

from sdopt.bench.faults.fault import Fault, Faulty, Finding
from sdopt.bench.faults.judging import finding, fresh_gate
from sdopt.util.replaced import replaced

if TYPE_CHECKING:
    from sdopt.bench.faults.fault import Inject
    from sdopt.bench.session import Session
    from sdopt.levels import Level
    from sdopt.pipelines.pipeline import LevelPipeline

LEAKED_MIB = 3
BLEND = 0.02
"""How much of an earlier request's noise stays in that of the next."""


def request_faults() -> list[Fault]:
    """Those that a second request shows."""
    kept: dict[str, tuple[Inject, str]] = {
        "the first prompt": (_keeping("prompt"), "its prompt was not used"),
        "the first negative prompt": (
            _keeping("negative_prompt"),
            "its negative prompt was not used",
        ),
        "the first seed": (_keeping("generator"), "its seed was not used"),
        "the first guidance": (_keeping("guidance_scale"), "its guidance was not used"),
        "the first number of steps": (
            _keeping("num_inference_steps"),
            "its number of steps was not used",
        ),
        "some of the last noise": (_blending, "after another request its image differs"),
    }
    return [
        Fault(group="request", name="none (control)", inject=nullcontext, caught_by=None),
        *(
            Fault(
                group="request", name=f"{name} kept", inject=inject, caught_by="effect", says=says
            )
            for name, (inject, says) in kept.items()
        ),
    ]


def round_faults() -> list[Fault]:
    """Those that the timed rounds show."""
    return [
        Fault(group="rounds", name="none (control)", inject=nullcontext, caught_by=None),
        Fault(
            group="rounds",
            name="a warm-up with fewer steps, and a graph in the first round",
            inject=_compiling_late,
            caught_by="graphs_in_rounds",
        ),
        Fault(
            group="rounds",
            name=f"a leak of {LEAKED_MIB} MiB an image",
            inject=_leaking,
            caught_by="growth_mib",
        ),
    ]


def judge_request_fault(
    fault: Fault, session: Session, level: Level, pipeline: LevelPipeline
) -> Finding:
    """Generate a second request with the fault inside."""
    from sdopt.bench.measure.second_request import kept_state

    gate = fresh_gate(session.gate)
    with fault.inject(pipeline) as faulty:
        gate.effect(level, kept_state(faulty, session.run.workload.requests))
    return finding(fault, gate.verdicts)


def judge_round_fault(
    fault: Fault, session: Session, level: Level, pipeline: LevelPipeline
) -> Finding:
    """Generate warm-up and rounds with the fault inside; nothing is timed."""
    from sdopt.bench import measure
    from sdopt.bench.measure.timing import ROUNDS, WARMUP_ROUNDS

    class Untimed:
        """Stands for pytest-benchmark's fixture."""

        disabled, stats = True, None

        def pedantic(self, target: Callable[[], object], **options: Any) -> None:
            for _ in range(WARMUP_ROUNDS + ROUNDS["cpu"]):
                options["setup"]()
                target()

    gate = fresh_gate(session.gate)
    with fault.inject(pipeline) as faulty:
        record = measure.latency(faulty, session.run.workload.requests[0], Untimed())
        gate.latency(level, record, measure.FirstCall(seconds=0.0, compile_cache="warm"))
    return finding(fault, gate.verdicts)


def _keeping(name: str) -> Inject:
    """An argument of the first call is that of all later ones; a generator as its seed."""
    return lambda pipeline: nullcontext(_Keeping(pipeline, name))


class _Keeping(Faulty):
    def __init__(self, pipeline: LevelPipeline, name: str) -> None:
        super().__init__(pipeline)
        self.name = name
        self.kept: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = {**({"prompt": args[0]} if args else {}), **kwargs}
        if self.name == "generator":
            self.kept = self.kept or given["generator"].initial_seed()
            given["generator"] = torch.Generator("cpu").manual_seed(self.kept)
        else:
            own = self.original._defaults().get(self.name)
            self.kept = self.kept or given.get(self.name, own)
            given[self.name] = self.kept
        return super().__call__(**given)


@contextmanager
def _blending(pipeline: LevelPipeline) -> Iterator[Any]:
    """As of a buffer that is not written whole."""
    prepare = pipeline.prepare_latents
    before: list[torch.Tensor] = []

    def blended(*args: Any, **kwargs: Any) -> Any:
        latents = prepare(*args, **kwargs)
        last = before.pop() if before else latents
        before.append(latents.clone())
        return latents.lerp(last, BLEND) if last.shape == latents.shape else latents

    with replaced(pipeline, "prepare_latents", blended):
        yield pipeline


@contextmanager
def _compiling_late(pipeline: LevelPipeline) -> Iterator[Any]:
    """Something that Dynamo compiles at the call after the warm-up, and at no other."""
    from sdopt.bench.measure.timing import WARMUP_ROUNDS

    calls = count()

    def shifted(value: torch.Tensor) -> torch.Tensor:
        return value + 1

    compiled = torch.compile(shifted, backend="eager", dynamic=False)

    def compile_once(module: Any, args: tuple[Any, ...]) -> None:
        compiled(torch.zeros(2 if next(calls) < WARMUP_ROUNDS else 3))

    handle = pipeline.vae.decoder.register_forward_pre_hook(compile_once)
    try:
        yield pipeline
    finally:
        handle.remove()


@contextmanager
def _leaking(pipeline: LevelPipeline) -> Iterator[Any]:
    from sdopt.bench.ab.slowdowns import inject

    undo = inject(pipeline, f"leak:{LEAKED_MIB}", 0.0)
    try:
        yield pipeline
    finally:
        undo()
