"""One run of the suite: its context, pipelines and baselines, its gate and what it judged."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sdopt.bench.judge.gate import Gate
from sdopt.bench.judge.verdict import Verdict
from sdopt.bench.session.context import RunContext
from sdopt.bench.session.pool import PipelinePool
from sdopt.bench.session.store import BaselineStore
from sdopt.bench.stored import baselines
from sdopt.bench.stored.compared import Compared, NotCompared, Refused, take


@dataclass(kw_only=True)
class Session:
    """What one run of pytest shares.

    `left_behind` are lines about what runs that were killed left, see `leftovers`.
    `judged` are the node ids of the tests that reached a verdict, `failed_by_verdict` of those that
    one of their verdicts failed.
    """

    run: RunContext
    pool: PipelinePool
    store: BaselineStore
    left_behind: list[str] = field(default_factory=list)
    judged: list[str] = field(default_factory=list)
    failed_by_verdict: list[str] = field(default_factory=list)
    _gate: Gate | None = None

    @classmethod
    def of(cls, run: RunContext) -> Session:
        """A session in which nothing has happened yet."""
        return cls(run=run, pool=PipelinePool(run=run), store=BaselineStore(run=run))

    @property
    def gate(self) -> Gate:
        """The judge of this run's numbers. Raises BrokenFileError for broken limits or counts."""
        if self._gate is None:
            self._gate = make_gate(self.run, self.store)
        return self._gate

    @property
    def is_judging(self) -> bool:
        """Whether anything asked for the gate, and got it."""
        return self._gate is not None

    @property
    def verdicts(self) -> Sequence[Verdict]:
        """Those so far; none if nothing could be judged."""
        return self._gate.verdicts if self._gate else ()

    @property
    def measured(self) -> Mapping[str, Mapping[str, Any]]:
        """What was measured so far, by level."""
        return self._gate.measured if self._gate else {}

    def unjudged(self, deselected: Collection[str], scopes: Sequence[str]) -> list[str]:
        """The tests that the stored run judged, that this run covers, and that it did not judge.

        `scopes` are the node id prefixes this run was asked for, `deselected` the node ids it left
        out on request. A removed, renamed or skipped benchmark ends up here.
        """
        found = self.store.history
        if not isinstance(found, Compared):
            return []
        return [
            test
            for test in found.newest.judged
            if test not in self.judged
            and test not in deselected
            and any(_is_within(test, scope) for scope in scopes)
        ]

    def block(self) -> dict[str, Any]:
        """What this suite adds to the top of pytest-benchmark's JSON."""
        run = self.run
        return {
            "schema": baselines.SCHEMA,
            "hardware": run.hardware.key,
            "baseline_set": run.baseline_set,
            "source": run.source.name,
            "accepted": run.settings.accept,
            "judged": sorted(self.judged),
            "environment": run.environment,
            **({"fault": self.pool.fault} if self.pool.fault else {}),
            **({"kept": kept} if (kept := self.store.kept()) else {}),
        }


def make_gate(run: RunContext, store: BaselineStore) -> Gate:
    """The judge of a run by what is stored for it."""
    gate = Gate(
        comparing=not isinstance(store.history, NotCompared),
        device=run.device.type,
        levels=run.levels,
        command=run.settings.command,
        limits=baselines.load_limits(store.limits_file),
        limits_file=str(store.limits_file),
        own_prompts=run.settings.prompts is not None,
        work_stored=store.work,
        work_file=str(store.work_file),
    )
    match store.history:
        case Refused() as refused:
            gate.refusal, gate.refusal_hint = refused.reason, _hint(run, refused)
        case Compared() as found:
            take(gate, found, partial(_redefined, run))
    return gate


def _redefined(run: RunContext, level: str, stored: Mapping[str, Any]) -> str | None:
    """In what a stored measurement of a level is of other settings than this run's."""
    if level not in run.levels:
        return None
    return baselines.redefinition(stored, run.levels[level], run.source.guidance_scale)


def _hint(run: RunContext, refused: Refused) -> str | None:
    """What to run so that there is something to compare with; None for the usual."""
    if run.settings.unfit:
        return f"{run.settings.command} --benchmark-compare  # without that option"
    if refused.broken:
        whole = "or remove it, if git has none that is whole"
        return f"git checkout -- {refused.broken}  # {whole}"
    return None


def _is_within(test: str, scope: str) -> bool:
    """Whether a node id is that of `scope` itself or of something inside that folder or file."""
    inside = test.removeprefix(scope)
    return scope in ("", ".") or (inside != test and inside[:1] in ("", "/", ":", "["))
