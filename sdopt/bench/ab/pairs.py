"""The coordinator: pairs of fresh processes in turns, until every level is decided."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sdopt.bench.ab.cleanup import Janitor, janitor
from sdopt.bench.ab.process import Worker, running
from sdopt.bench.ab.result import LevelPair, Result, SideSample, Spec
from sdopt.bench.ab.rounds import BLOCK_ROUNDS, BLOCKS, Side, in_order, schedule
from sdopt.bench.metrics import PAIRED
from sdopt.errors import SdoptError, UnknownNameError
from sdopt.levels import changed_settings
from sdopt.util.progress import Progress, Steps

if TYPE_CHECKING:
    from sdopt.bench.judge.verdict import Verdict

Judge = Callable[[str, str, Sequence[float], Sequence[float]], "Verdict | None"]
"""Of a level, a metric and the base's and the head's values, one a pair: None asks for more."""


def run_pairs(spec: Spec, judge: Judge, progress: Progress) -> Result:
    """Measure and judge the levels in pair after pair, and drop each one that is decided.

    Raises WorkerError if a worker dies, hangs or cannot do what it is asked, UnknownNameError for a
    level that neither side has.
    """
    if spec.max_pairs < 1:
        raise SdoptError(f"max_pairs is {spec.max_pairs}; it is an integer, 1 or more")
    run = _Run(spec=spec, judge=judge, progress=progress)
    with janitor() as keeper:
        for number in range(1, spec.max_pairs + 1):
            run.measure_pair(number, keeper)
            if not run.levels:
                break
    return run.result()


@dataclass(kw_only=True)
class _Run:
    """What is known so far; `levels` are those that more is to be known of."""

    spec: Spec
    judge: Judge
    progress: Progress
    device: str = ""
    levels: list[str] = field(default_factory=list)
    verdicts: dict[tuple[str, str], Verdict] = field(default_factory=dict)
    undecided: list[tuple[str, str]] = field(default_factory=list)
    pairs: list[LevelPair] = field(default_factory=list)
    redefined: dict[str, str] = field(default_factory=dict)
    new: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    work: dict[str, dict[Side, Mapping[str, Any]]] = field(default_factory=dict)
    steps: Steps = field(default_factory=Steps)

    def measure_pair(self, number: int, keeper: Janitor) -> None:
        """Both workers, started afresh, and every level that is left."""
        order = in_order("base" if number % 2 else "head")
        workers: dict[Side, Worker] = {}
        hellos: dict[Side, dict[str, Any]] = {}
        with ExitStack() as stack:
            for side in order:
                with self.during(number, f"starting the {side}'s worker"):
                    workers[side] = stack.enter_context(running(self.spec, side, keeper))
                    hellos[side] = workers[side].ask("hello")
            if number == 1:
                self._choose_levels(hellos)
            for level in self.levels:
                self.pairs.append(_Match(self, number, level, workers).measured())
        self._judge()

    def during(self, number: int, what: str) -> AbstractContextManager[object]:
        """Report on what takes long."""
        self.steps.total, self.steps.done = self.spec.max_pairs, number - 1
        pair = f"pair {number} of at most {self.spec.max_pairs}{self.steps.left('at most')}"
        return self.progress.during(f"{pair}: {what}")

    def _choose_levels(self, hellos: Mapping[Side, dict[str, Any]]) -> None:
        base, head = hellos["base"]["levels"], hellos["head"]["levels"]
        self.device = hellos["head"]["device"]
        known = list(dict.fromkeys([*head, *base]))
        wanted = known if self.spec.levels is None else list(self.spec.levels)
        for level in wanted:
            if level not in known:
                raise UnknownNameError("level", level, known)
        self.new = tuple(level for level in wanted if level not in base)
        # Whatever is wanted: who asks for the head's levels would never hear of one that it lost.
        self.removed = tuple(level for level in base if level not in head)
        self.levels = [level for level in wanted if level in base and level in head]

    def _judge(self) -> None:
        """Ask for the verdicts that are still open; drop the levels that have them all."""
        self.undecided = []
        for level in self.levels:
            for metric in PAIRED:
                base, head = self.result().values(level, metric)
                if not base or (level, metric) in self.verdicts:
                    continue
                verdict = self.judge(level, metric, base, head)
                if verdict is None:
                    self.undecided.append((level, metric))
                else:
                    self.verdicts[level, metric] = verdict
        self.levels = list(dict.fromkeys(level for level, _ in self.undecided))

    def result(self) -> Result:
        """What is known by now."""
        return Result(
            device=self.device,
            verdicts=tuple(self.verdicts.values()),
            undecided=tuple(self.undecided),
            pairs=tuple(self.pairs),
            redefined=dict(self.redefined),
            new=self.new,
            removed=self.removed,
            work={level: dict(sides) for level, sides in self.work.items()},
        )


@dataclass
class _Match:
    """One level in one pair."""

    run: _Run
    number: int
    level: str
    workers: Mapping[Side, Worker]

    def measured(self) -> LevelPair:
        """Load on both sides, generate in turns, look at memory and work, free on both sides."""
        with self.run.during(self.number, f"[{self.level}] loading on both sides"):
            loaded = {side: self._ask(side, "load", level=self.level) for side in self.workers}
        self._note_redefinition(loaded)
        with self.run.during(self.number, f"[{self.level}] images in turns"):
            rounds_ms = self._rounds()
            peaks = {side: self._ask(side, "memory") for side in self.workers}
            if self.number == 1:
                self.run.work[self.level] = {
                    side: self._ask(side, "work")["work"] for side in self.workers
                }
            for side in self.workers:
                self._ask(side, "free")
        samples = {
            side: SideSample(
                rounds_ms=tuple(rounds_ms[side]),
                first_call_s=loaded[side]["first_call_s"],
                peak_allocated_mib=peaks[side]["peak_allocated_mib"],
            )
            for side in self.workers
        }
        return LevelPair(
            level=self.level,
            pair=self.number,
            first=next(iter(self.workers)),
            block_rounds=BLOCK_ROUNDS[self.run.device],
            **samples,
        )

    def _ask(self, side: Side, do: str, **arguments: Any) -> dict[str, Any]:
        return self.workers[side].ask(do, about=self.level, **arguments)

    def _rounds(self) -> dict[Side, list[float]]:
        device = self.run.device
        rounds_ms: dict[Side, list[float]] = {side: [] for side in self.workers}
        for side in schedule(next(iter(self.workers)), BLOCKS[device]):
            block = self._ask(side, "rounds", count=BLOCK_ROUNDS[device])["ms"]
            if len(block) != BLOCK_ROUNDS[device] or not all(map(_is_time, block)):
                self.workers[side].fail(f"measured {block!r}, which are no times")
            rounds_ms[side] += block
        return rounds_ms

    def _note_redefinition(self, loaded: Mapping[Side, dict[str, Any]]) -> None:
        changes = changed_settings(loaded["base"]["level"], loaded["head"]["level"])
        if changes:
            self.run.redefined[self.level] = ", ".join(changes)


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0
