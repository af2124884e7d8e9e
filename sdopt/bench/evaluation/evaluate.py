"""An evaluation from its first prompt to its verdict: plan, work, merge, judge."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sdopt.bench.evaluation.checking import MadeWith, missing_blocks
from sdopt.bench.evaluation.crew import Crew
from sdopt.bench.evaluation.distance import fid, fid_absence
from sdopt.bench.evaluation.here import here_of
from sdopt.bench.evaluation.holding import held
from sdopt.bench.evaluation.judging import Limit, verdicts_of
from sdopt.bench.evaluation.parts import PARTS, SUFFIX
from sdopt.bench.evaluation.places import Place
from sdopt.bench.evaluation.plan import Evaluation, open_run
from sdopt.bench.evaluation.scores import absences
from sdopt.bench.evaluation.summary import JSON, judged, summarize, write_summary, write_worst
from sdopt.bench.evaluation.work import MOST_BATCH, Build, Worker, pipeline_of
from sdopt.bench.judge.verdict import Verdict
from sdopt.errors import SdoptError

PATIENCE_S = 1800.0
"""Without any new part for so long, the others are taken for dead."""
LOOK_EVERY_S = 1.0
SAY_EVERY_S = 30.0
Say = Callable[[str], None]


def evaluate(
    evaluation: Evaluation,
    place: Place,
    crew: Crew,
    *,
    limits: Sequence[Limit] = (),
    say: Say = print,
    build: Build | None = None,
    patience_s: float = PATIENCE_S,
    again: str = "",
) -> tuple[dict[str, Any], list[Verdict]] | None:
    """Make what is missing there, with all processes; the main one merges, judges and writes.

    None in the others. Raises SdoptError: also for prompts that are missing after all.
    """
    dtype = _dtype(crew)
    made_with = {
        level.name: evaluation.made_with(level, crew.device.type, dtype)
        for level in evaluation.all_levels()
    }
    with ExitStack() as stack:
        missing, session = crew.told_by_main(
            lambda: _begin(evaluation, place, crew, stack, say, made_with)
        )
        wanted = sorted({block for blocks in missing.values() for block in blocks})
        watch = Watch(evaluation=evaluation, place=place, say=say if crew.is_main else _silent)
        Worker(
            evaluation=evaluation,
            place=place,
            build=build or partial(pipeline_of, evaluation.source, crew.device),
            session=session,
            process=crew.number,
            device=crew.device.type,
            threads=threads_of(crew.size),
            say=say,
            progress=watch.look,
            made_with=made_with,
        ).work(missing, crew.share(wanted), evaluation.batch or MOST_BATCH[crew.device.type])
        if not crew.is_main:
            return None
        watch.wait(patience_s)
        return _told(evaluation, place, crew, limits, again, made_with)


def _begin(
    evaluation: Evaluation,
    place: Place,
    crew: Crew,
    stack: ExitStack,
    say: Say,
    made_with: MadeWith,
) -> tuple[dict[str, list[int]], str]:
    """What is missing, once the place is ours until the stack is left."""
    if crew.size > 1 and not place.shared:
        raise SdoptError(
            f"--out {place.name} is memory of one process, and there are {crew.size}; give a "
            "folder or object storage that all of them see"
        )
    stack.enter_context(held(place, say))
    here = here_of(crew.device)
    open_run(place, evaluation, crew.device.type, _dtype(crew), here, say)
    return missing_blocks(place, evaluation, made_with), f"{time.time():.3f}"


def _dtype(crew: Crew) -> str:
    from sdopt.pipelines.pipeline import dtype_on

    return str(dtype_on(crew.device)).removeprefix("torch.")


def _told(
    evaluation: Evaluation,
    place: Place,
    crew: Crew,
    limits: Sequence[Limit],
    again: str,
    made_with: MadeWith,
) -> tuple[dict[str, Any], list[Verdict]]:
    fids = {}
    if fid_absence() is None:
        reference = evaluation.reference.name
        fids = {
            level.name: fid(place, level.name, reference, crew.device)
            for level in evaluation.levels
        }
    summary = summarize(place, evaluation, absences(), fids, made_with)
    verdicts = verdicts_of(summary, limits, again, f"{place.name}/{JSON}")
    write_worst(place, evaluation, summary)
    content = judged(summary, verdicts)
    write_summary(place, content)
    return content, verdicts


def threads_of(processes: int) -> int:
    """For scoring: this process's share of the cores, if all of them are of this machine."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    return max(1, len(os.sched_getaffinity(0)) // max(1, local))


def _silent(_: str) -> None:
    """The main process tells for all."""


@dataclass
class Watch:
    """The progress of all processes, by the parts that are there."""

    evaluation: Evaluation
    place: Place
    say: Say
    began: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)
    before: int | None = None

    def __post_init__(self) -> None:
        self.before = self.parts()

    def parts(self) -> int:
        """Of all levels, that are there."""
        return sum(
            sum(name.endswith(SUFFIX) for name in self.place.files(f"{PARTS}/{level.name}"))
            for level in self.evaluation.all_levels()
        )

    @property
    def whole(self) -> int:
        """Parts that there will be."""
        return self.evaluation.blocks * len(self.evaluation.all_levels())

    def look(self) -> None:
        """Tell now and then, with the time left."""
        if time.monotonic() - self.told >= SAY_EVERY_S and self.say is not _silent:
            self.told = time.monotonic()
            self.say(self.line(self.parts()))

    def line(self, there: int) -> str:
        """'64 of 320 parts of 32 prompts, 12.3 images / s, 11 min left'."""
        new, seconds = there - (self.before or 0), time.monotonic() - self.began
        rate = f"{new * self.evaluation.part / seconds:.3g} images / s"
        left = f"{(self.whole - there) * seconds / new / 60:.0f} min left" if new else "..."
        return f"{there} of {self.whole} parts of {self.evaluation.part} prompts, {rate}, {left}"

    def wait(self, patience_s: float) -> None:
        """Until every part is there. Raises SdoptError if for so long none is added."""
        there, since = self.parts(), time.monotonic()
        while there < self.whole:
            if time.monotonic() - since > patience_s:
                raise SdoptError(
                    f"{self.whole - there} of {self.whole} parts are missing, and none was added "
                    f"for {patience_s:.0f} s: a process has ended or hangs; run the same command "
                    "again: it makes what is missing"
                )
            time.sleep(LOOK_EVERY_S)
            self.look()
            now = self.parts()
            if now > there:
                there, since = now, time.monotonic()
