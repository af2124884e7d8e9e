"""Each level's verdicts in one sentence, the gravest first, and one for the whole run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdopt.bench.judge.verdict import Outcome, Verdict, first_failure
from sdopt.bench.metrics import METRICS
from sdopt.bench.metrics.time import LATENCY
from sdopt.bench.report.page.facts import Facts
from sdopt.util.text import counted

ORDER = (
    Outcome.REGRESSION,
    Outcome.FAULT,
    Outcome.INSUFFICIENT,
    Outcome.IMPROVEMENT,
    Outcome.PASS,
    Outcome.RECORDED,
)
SIGNS = {
    Outcome.REGRESSION: "✗",
    Outcome.FAULT: "✗",
    Outcome.INSUFFICIENT: "?",
    Outcome.IMPROVEMENT: "▲",
    Outcome.PASS: "✓",
    Outcome.RECORDED: "○",
}
KINDS = {
    Outcome.REGRESSION: "bad",
    Outcome.FAULT: "bad",
    Outcome.INSUFFICIENT: "unsure",
    Outcome.IMPROVEMENT: "better",
    Outcome.PASS: "good",
    Outcome.RECORDED: "plain",
}
WORDS = {
    Outcome.REGRESSION: "regression",
    Outcome.FAULT: "fault",
    Outcome.INSUFFICIENT: "not clear",
    Outcome.IMPROVEMENT: "better",
    Outcome.PASS: "pass",
    Outcome.RECORDED: "recorded",
}


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """What is said of a level, or of a run if `level` is empty; `outcome` chooses its color."""

    level: str
    outcome: Outcome
    text: str
    verdicts: Sequence[Verdict] = ()

    @property
    def sign(self) -> str:
        """One character, so that nothing depends on a color."""
        return SIGNS[self.outcome]

    @property
    def word(self) -> str:
        """The outcome, short."""
        return WORDS[self.outcome]

    @property
    def kind(self) -> str:
        """The class in the style sheet."""
        return KINDS[self.outcome]


def of_run(facts: Facts) -> Sentence:
    """The sentence on top."""
    if not facts.verdicts:
        return Sentence(level="", outcome=Outcome.FAULT, text="There is nothing to judge.")
    gravest = first_failure(facts.verdicts).outcome
    failed = _levels(facts, Outcome.REGRESSION)
    improved = _levels(facts, Outcome.IMPROVEMENT)
    levels = counted(len(facts.run.rows), "level")
    if gravest is Outcome.REGRESSION:
        text = f"Regression: {len(failed)} of {levels} failed ({_list(failed, 6)})."
        return Sentence(level="", outcome=gravest, text=text)
    if gravest is Outcome.FAULT:
        which = _list(_levels(facts, Outcome.FAULT))
        text = f"No answer: what is needed to judge {which} is missing or broken."
    elif gravest is Outcome.INSUFFICIENT:
        text = f"Not clear: the numbers of {_list(_levels(facts, gravest))} do not answer."
    elif improved:
        text = f"No regression: {levels} passed, and {_list(improved)} got better."
    elif facts.other:
        text = f"No regression: {levels} passed."
    else:
        text = f"No regression in images and work; the times of {levels} are recorded only."
    return Sentence(level="", outcome=gravest, text=text)


def of_levels(facts: Facts) -> list[Sentence]:
    """One sentence a level, what failed before what did not."""
    found = [_of_level(facts, level) for level in facts.run.rows]
    return sorted(found, key=lambda one: ORDER.index(one.outcome))


def _of_level(facts: Facts, level: str) -> Sentence:
    verdicts = sorted(facts.of_level(level), key=lambda one: ORDER.index(one.outcome))
    if not verdicts:
        return Sentence(level=level, outcome=Outcome.FAULT, text="nothing of it can be judged.")
    outcome = verdicts[0].outcome
    told = [one for one in verdicts if one.outcome is outcome]
    latency = next((one for one in verdicts if one.metric == LATENCY.name), None)
    if outcome in (Outcome.PASS, Outcome.RECORDED):
        text = f"{_passed(verdicts)}{_time(latency)}."
    else:
        better = [one for one in verdicts if one.outcome is Outcome.IMPROVEMENT]
        text = "; ".join(map(_clause, told))
        if better and outcome is not Outcome.IMPROVEMENT:
            text += f"; better is {'; '.join(map(_clause, better))}"
        text += "."
    return Sentence(level=level, outcome=outcome, text=text, verdicts=verdicts)


def _passed(verdicts: Sequence[Verdict]) -> str:
    judged = sum(one.outcome is Outcome.PASS for one in verdicts)
    if not judged:
        return "recorded, with nothing to judge it by"
    of = "" if judged == len(verdicts) else f", {len(verdicts) - judged} recorded"
    return (
        f"{counted(judged, 'metric')} within {'its limit' if judged == 1 else 'their limits'}{of}"
    )


def _time(verdict: Verdict | None) -> str:
    if verdict is None or verdict.measured is None:
        return ""
    return f"; {number(verdict.measured, verdict.metric)}{_change(verdict)}"


def _clause(verdict: Verdict) -> str:
    """'latency_ms 35.0 ms, +12.3 % against the stored run (up to +7.1 % may be chance)'."""
    if verdict.outcome in (Outcome.FAULT, Outcome.INSUFFICIENT) or verdict.measured is None:
        return f"{verdict.metric}: {verdict.reason}"
    value = f"{verdict.metric} {number(verdict.measured, verdict.metric)}"
    if verdict.runs is None and verdict.limit is not None and verdict.stored is None:
        better = METRICS[verdict.metric].better.value if verdict.metric in METRICS else ""
        bound = "at least" if better == "higher" else "at most"
        return f"{value}, {bound} {number(verdict.limit, verdict.metric)} passes"
    if verdict.runs is None:
        return f"{value}: {verdict.reason}"
    return f"{value}{_change(verdict)}"


def _change(verdict: Verdict) -> str:
    if not verdict.stored or verdict.measured is None or not verdict.runs:
        return ""
    change = 100 * (verdict.measured / verdict.stored - 1)
    runs = "the stored run" if verdict.runs == 1 else f"the median of {verdict.runs} stored runs"
    chance = ""
    if verdict.limit is not None:
        most = 100 * (verdict.limit / verdict.stored - 1)
        chance = f" (up to +{most:.{0 if most >= 10 else 1}f} % may be chance)"
    return f", {change:+.1f} % against {runs}{chance}"


def number(value: float, metric: str) -> str:
    """A value with its unit, so many digits as say something."""
    unit = METRICS[metric].unit if metric in METRICS else ""
    digits = ".6g" if metric.startswith(("ssim", "latent")) else ".4g"
    if abs(value) >= 1000:
        digits = ".0f"
    return f"{value:{digits}}{f' {unit}' if unit else ''}"


def _levels(facts: Facts, outcome: Outcome) -> list[str]:
    return list(dict.fromkeys(one.level for one in facts.verdicts if one.outcome is outcome))


def _list(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
