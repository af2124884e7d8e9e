"""`--sdopt-ab BASE`: the collected levels as paired comparisons of BASE with the working tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sdopt.bench.judge.counts import same_count
from sdopt.bench.judge.rules import by_pairs, plan_of
from sdopt.bench.judge.statistics import PairedPlan
from sdopt.bench.judge.verdict import Outcome, Verdict, fault, first_failure
from sdopt.bench.metrics import HISTORY_RULES, METRICS, PAIRED
from sdopt.bench.metrics.metric import AsAccepted, Row
from sdopt.errors import SdoptError
from sdopt.levels import LEVELS

if TYPE_CHECKING:
    from sdopt.bench.ab import Result
    from sdopt.bench.session import Session


class Comparison:
    """The A/B run of a session: made when its first test runs, for all levels at once."""

    def __init__(self, session: Session, base: str, root: Path, levels: Sequence[str]) -> None:
        self.session, self.base, self.root, self.levels = session, base, root, tuple(levels)
        self._result: Result | None = None
        self._error: SdoptError | None = None

    @property
    def result(self) -> Result:
        """What the pairs came to. Raises SdoptError if a revision or a process failed."""
        if self._error:
            raise self._error
        if self._result is None:
            try:
                self._result = self._run()
            except SdoptError as error:
                self._error = error  # the other levels must not start it all again
                raise
        return self._result

    def _run(self) -> Result:
        from sdopt.bench.ab import Sides, Spec, checked_out, run_pairs

        run = self.session.run
        settings = run.settings
        with checked_out(self.root, self.base) as tree:
            spec = Spec(
                sides=Sides(base=tree, head=self.root),
                # What 'auto' means is decided here, once for both sides.
                source=run.source.name if settings.source == "auto" else settings.source,
                prompts=settings.prompts.absolute() if settings.prompts else None,
                levels=self.levels,
                max_pairs=PairedPlan().looks[-1],
            )
            return run_pairs(spec, self.judge, run.progress)

    def judge(
        self, level: str, metric: str, base: Sequence[float], head: Sequence[float]
    ) -> Verdict | None:
        """The verdict on the pairs so far, or None to add pairs."""
        return by_pairs(level, metric, base, head, self.plan(level, metric))

    def plan(self, level: str, metric: str) -> PairedPlan:
        """When to look and what matters; all comparisons of the run share one error rate."""
        device = self.session.run.device.type
        metrics = sum(HISTORY_RULES[name].is_for(device) for name in PAIRED)
        noise = HISTORY_RULES[metric].noise(device, LEVELS[level])
        return plan_of(PAIRED[metric], noise, comparisons=len(self.levels) * metrics)

    def verdicts(self, level: str) -> list[Verdict]:
        """Time, memory and work of one level. A level that only one side has is a fault or new."""
        result = self.result
        if level in result.new:
            reason = f"{self.base} has no such level: there is nothing to compare with"
            verdict = Verdict(
                level=level, metric="latency_ms", outcome=Outcome.RECORDED, reason=reason
            )
            return [verdict]
        judged = [verdict for verdict in result.verdicts if verdict.level == level]
        undecided = [
            fault(level, metric, "the pairs ended without an answer")
            for name, metric in result.undecided
            if name == level
        ]
        verdicts = [*judged, *undecided, *self._of_work(level)]
        return [replace(verdict, next_step=self._next_step(verdict)) for verdict in verdicts]

    def _of_work(self, level: str) -> list[Verdict]:
        """Counts of one image that differ between the sides, judged as those of any run.

        What is stored in the working tree has been accepted there.
        """
        work = self.result.work.get(level, {})
        base, head = work.get("base", {}), work.get("head", {})
        accepted: Row = self.session.gate.work_stored.get(level, {})
        return [
            same_count(metric, level, head, base, accepted)
            for name, metric in METRICS.items()
            # A base from before there were such counts has none.
            if isinstance(metric.rule, AsAccepted) and name in base and name in head
        ]

    def _next_step(self, verdict: Verdict) -> str:
        if verdict.passed:
            return ""
        if verdict.outcome is Outcome.REGRESSION:
            diff = f"git diff {self.base} -- sdopt  # what made it so"
            if isinstance(METRICS[verdict.metric].rule, AsAccepted):
                again = f'{self.session.run.settings.command} -k "[{verdict.level}]"'
                return f"{diff}\n  or:   {again} --sdopt-accept  # if the new work is meant"
            return diff
        again = f'{self.session.run.settings.command} --sdopt-ab={self.base} -k "[{verdict.level}]"'
        return f"{again}  # when nothing else runs on the machine"

    def notes(self) -> list[str]:
        """What a reader has to know besides the verdicts."""
        result = self._result
        if result is None:
            return []
        changed = [f"[{level}] was redefined: {how}" for level, how in result.redefined.items()]
        return [*changed, *(f"[{level}] is gone: {self.base} has it" for level in result.removed)]

    @property
    def removed(self) -> list[str]:
        """The levels that only the base has."""
        return list(self._result.removed) if self._result else []

    def samples(self) -> list[dict[str, Any]]:
        """Every pair's values and rounds, for verdicts.json."""
        return [
            {
                "level": pair.level,
                "pair": pair.pair,
                "first": pair.first,
                "metrics": pair.metrics,
                "base_rounds_ms": pair.base.rounds_ms,
                "head_rounds_ms": pair.head.rounds_ms,
            }
            for pair in (self._result.pairs if self._result else ())
        ]


class PairedItem(pytest.Item):
    """One level in an A/B run."""

    judges = True

    def __init__(self, *, level: str, comparison: Comparison, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.level, self.comparison = level, comparison

    def runtest(self) -> None:
        """Fail with the verdict that speaks for the level."""
        session = self.comparison.session
        verdicts = self.comparison.verdicts(self.level)
        session.gate.verdicts.extend(verdicts)
        session.judged.append(self.nodeid)
        self.user_properties += [(f"sdopt {v.metric}", v.outcome.value) for v in verdicts]
        speaking = first_failure(verdicts)
        if not speaking.passed:
            session.failed_by_verdict.append(self.nodeid)
            raise FailedVerdict(speaking.message)

    def repr_failure(self, excinfo: Any, style: Any = None) -> str:
        """The message alone for verdicts and for mistakes that name what to do."""
        if isinstance(excinfo.value, (FailedVerdict, SdoptError)):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo, style))

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where pytest says that this comparison stands."""
        return self.config.rootpath, None, self.name


class FailedVerdict(Exception):
    """A comparison that did not pass."""


def paired_items(
    session: pytest.Session, items: Sequence[pytest.Item], own: Session, base: str
) -> tuple[list[pytest.Item], Comparison]:
    """One item for each level that was selected, in the order of the ladder."""
    chosen = {
        item.callspec.params.get("level")
        for item in items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
    }
    levels = [name for name in LEVELS if name in chosen]
    comparison = Comparison(own, base, session.config.rootpath, levels)
    return [
        PairedItem.from_parent(
            session,
            name=f"{base} against the working tree [{level}]",
            level=level,
            comparison=comparison,
        )
        for level in levels
    ], comparison


def summary(comparison: Comparison, verdicts: Sequence[Verdict]) -> list[str]:
    """A line per verdict, then what else is to be known."""
    lines = [
        f"[{verdict.level}] {verdict.metric}: {verdict.outcome.value}: {verdict.reason}"
        for verdict in verdicts
    ]
    return [*lines, *comparison.notes()]
