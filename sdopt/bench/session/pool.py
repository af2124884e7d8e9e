"""The pipelines of one run: built, warmed up, kept where several need them, and freed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from sdopt.bench.own.ladder import OwnLevel
from sdopt.bench.session.context import RunContext
from sdopt.errors import MemoryLeftError
from sdopt.levels import Level
from sdopt.util.hardware import free_memory

if TYPE_CHECKING:
    from sdopt.bench.measure import FirstCall
    from sdopt.bench.measure.generated import Generated
    from sdopt.pipelines.pipeline import LevelPipeline

MEMORY_LEFT_MIB = 1.0
"""What a freed level may leave allocated."""


@dataclass(kw_only=True)
class PipelinePool:
    """Builds the pipelines of a run, and keeps what they generated when they are gone.

    `fault` is what `sdopt.bench.plugin.carry` puts into every pipeline.
    """

    run: RunContext
    fault: str | None = None
    _kept: dict[str, LevelPipeline] = field(default_factory=dict)
    _warm: int = 0
    _stack: ExitStack = field(default_factory=ExitStack)
    _generated: dict[str, Generated] = field(default_factory=dict)

    def build(self, level: Level) -> LevelPipeline:
        """A pipeline of its own, which whoever asked for it has to free."""
        if isinstance(level, OwnLevel):
            from sdopt.bench.own import pipeline as own

            # It behaves as a LevelPipeline does, as far as one is measured.
            return cast("LevelPipeline", own.build(level, self.run.source, self.run.device))
        from sdopt.pipelines.pipeline import build

        return build(self.run.source, level, self.run.device)

    def free(self, pipeline: LevelPipeline) -> None:
        """Give the pipeline's memory back.

        Whoever still holds the pipeline itself, such as an error's traceback, holds none of its
        parts.
        """
        pipeline.__dict__.clear()
        free_memory(self.run.device)

    @contextmanager
    def warm(self, level: Level) -> Iterator[tuple[LevelPipeline, FirstCall]]:
        """The level's pipeline after its first image; freed on exit.

        Raises MemoryLeftError if freeing it leaves device memory allocated. That is not measured
        beside another warm pipeline, which measuring could disturb.
        """
        from sdopt.bench.measure import first_call
        from sdopt.bench.measure.cuda_memory import allocated_mib

        run = self.run
        with self._counted() as alone:
            before_mib = allocated_mib(run.device) if alone else None
            with run.progress.during(f"[{level.name}] loading PyTorch, diffusers and the weights"):
                pipeline = self.build(level)
            what = "first image, compiling" if level.compiled else "first image"
            with run.progress.during(f"[{level.name}] {what}"):
                first = first_call(pipeline, run.workload.requests[0])
            carried = ExitStack()
            if self.fault:
                carried.callback(self._carry(pipeline, self.fault))
            # Not in a `finally`: after an error, what its traceback holds says which level it was.
            yield pipeline, first
            carried.close()
            self.free(pipeline)
        if before_mib is None or self._warm:
            return
        if (left_mib := allocated_mib(run.device) - before_mib) > MEMORY_LEFT_MIB:
            raise MemoryLeftError(
                f"[{level.name}] {left_mib:.1f} MiB stay allocated on {run.device} after its "
                f"pipeline was freed, {MEMORY_LEFT_MIB:g} MiB are allowed; something still refers "
                "to it"
            )

    @contextmanager
    def _counted(self) -> Iterator[bool]:
        """Yields whether no other pipeline is warm."""
        self._warm += 1
        try:
            yield self._warm == 1
        finally:
            self._warm -= 1

    def _carry(self, pipeline: LevelPipeline, fault: str) -> Callable[[], None]:
        """Put the fault in; it goes with what takes it out, so somebody has to hold that."""
        from sdopt.bench.ab.slowdowns import inject
        from sdopt.bench.measure.timing import image_ms

        return inject(pipeline, fault, image_ms(pipeline, self.run.workload.requests[0]))

    def keep(self, level: Level) -> LevelPipeline:
        """The level's pipeline, warm; one for all who ask, until the pool is closed."""
        if level.name not in self._kept:
            self._kept[level.name] = self._stack.enter_context(self.warm(level))[0]
        return self._kept[level.name]

    def close(self) -> None:
        """Free the pipelines that were kept."""
        self._kept.clear()
        self._stack.close()

    def kept_state(self, level: Level, pipeline: LevelPipeline) -> tuple[str, ...]:
        """What an earlier request left in the pipeline, see `sdopt.bench.measure.second_request`.

        No second pipeline of a compiled level: it might compile all anew.
        """
        from sdopt.bench.measure.second_request import kept_state

        fresh = None if level.compiled else lambda: self.build(level)
        with self.run.progress.during(f"[{level.name}] a second request"):
            kept = kept_state(pipeline, self.run.workload.requests, fresh)
        free_memory(self.run.device)
        return kept

    def generated(self, level: Level, pipeline: LevelPipeline) -> Generated:
        """What that pipeline makes of every request, made once a run."""
        from sdopt.bench.measure.generated import generate_all

        if level.name not in self._generated:
            requests = self.run.workload.requests
            with self.run.progress.during(f"[{level.name}] images", len(requests)) as advance:
                made = generate_all(pipeline, requests, advance)
            self._generated[level.name] = made
        return self._generated[level.name]

    def reference(self, level: Level) -> Generated | None:
        """What the reference level made in this run, or None for a level without one."""
        if level.reference is None:
            return None
        reference = self.run.levels[level.reference]
        if reference.name not in self._generated:
            with self.warm(reference) as (pipeline, _):
                self.generated(reference, pipeline)
        return self._generated[reference.name]
