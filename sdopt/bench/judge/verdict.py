"""Verdicts: what was judged, what came of it, and what to do next; plain frozen data."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from sdopt.bench.metrics import METRICS


class Outcome(enum.Enum):
    """What a verdict says.

    RECORDED passes, because nothing was there to judge against. IMPROVEMENT passes and says that
    the baseline should be moved: what is slower than it may still pass. INSUFFICIENT says that the
    numbers are too noisy or disturbed for an answer, FAULT that the suite itself or what it has
    stored is broken; both fail.
    """

    PASS = "pass"
    IMPROVEMENT = "improvement"
    RECORDED = "recorded"
    INSUFFICIENT = "insufficient data"
    REGRESSION = "regression"
    FAULT = "fault"


PASSING = (Outcome.PASS, Outcome.IMPROVEMENT, Outcome.RECORDED)


class ExitCode(enum.IntEnum):
    """What a run of the suite ends with; what failed without a verdict counts as a fault.

    pytest itself ends with 2 to 5 where it reached no verdict: none of these means anything else.
    """

    PASS = 0
    REGRESSION = 1
    FAULT = 2
    INSUFFICIENT = 10


def exit_code(verdicts: Sequence[Verdict], *, broken: bool = False) -> ExitCode:
    """The code of a whole run: a regression outranks a fault, a fault insufficient data.

    `broken` is whether a test failed without reaching a verdict.
    """
    outcomes = {verdict.outcome for verdict in verdicts}
    if Outcome.REGRESSION in outcomes:
        return ExitCode.REGRESSION
    if broken or Outcome.FAULT in outcomes:
        return ExitCode.FAULT
    return ExitCode.INSUFFICIENT if Outcome.INSUFFICIENT in outcomes else ExitCode.PASS


@dataclass(frozen=True, kw_only=True, repr=False)
class Verdict:
    """One judgement of one metric of one level, with all that a reader needs to act on it.

    `stored` and `limit` are None where nothing was stored; `next_step` is a command line.
    `detectable` is the smallest change, as a fraction, that such a judgement sees in 4 of 5 cases,
    `runs` the number of stored runs or of pairs behind it.
    """

    level: str
    metric: str
    outcome: Outcome
    reason: str
    measured: float | None = None
    stored: float | None = None
    limit: float | None = None
    detectable: float | None = None
    runs: int | None = None
    file: str | None = None
    next_step: str = ""

    def __repr__(self) -> str:
        # Short, because pytest prints it below the message of a failed assertion.
        return f"<Verdict [{self.level}] {self.metric}: {self.outcome.value}>"

    @property
    def passed(self) -> bool:
        """Whether the test that carries this verdict passes."""
        return self.outcome in PASSING

    @property
    def message(self) -> str:
        """The verdict in a few lines: what, measured, stored, limit, file, next command."""
        unit = METRICS[self.metric].unit if self.metric in METRICS else ""
        numbers = [
            f"{name} {value:.6g}{' ' + unit if unit else ''}"
            for name, value in (
                ("measured", self.measured),
                ("stored", self.stored),
                ("limit", self.limit),
            )
            if value is not None
        ]
        lines = [
            f"[{self.level}] {self.metric}: {self.outcome.value}: {self.reason}",
            ", ".join(numbers),
            f"file: {self.file}" if self.file else "",
            f"next: {self.next_step}" if self.next_step else "",
        ]
        return "\n  ".join(line for line in lines if line)


def fault(
    level: str,
    metric: str,
    reason: str,
    measured: float | None = None,
    stored: float | None = None,
) -> Verdict:
    """A verdict that could not be reached, which fails."""
    return Verdict(
        level=level,
        metric=metric,
        outcome=Outcome.FAULT,
        reason=reason,
        measured=measured,
        stored=stored,
    )


def void(level: str, metric: str, disturbances: Sequence[str]) -> Verdict:
    """A measurement that something disturbed: it fails, because nothing can be said of it."""
    return Verdict(
        level=level,
        metric=metric,
        outcome=Outcome.INSUFFICIENT,
        reason=f"the measurement is void: {'; '.join(disturbances)}",
    )


def recorded(level: str, metric: str, measured: float | None) -> Verdict:
    """A value with nothing to judge it against, which passes."""
    reason = "no comparison was asked for (--benchmark-compare)"
    return Verdict(
        level=level, metric=metric, outcome=Outcome.RECORDED, reason=reason, measured=measured
    )


def first_failure(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict that speaks for all: the first of the gravest outcome."""
    ranked = (
        Outcome.REGRESSION,
        Outcome.FAULT,
        Outcome.INSUFFICIENT,
        Outcome.IMPROVEMENT,
        Outcome.PASS,
        Outcome.RECORDED,
    )
    return min(verdicts, key=lambda verdict: ranked.index(verdict.outcome))
