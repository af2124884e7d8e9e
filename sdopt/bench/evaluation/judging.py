"""Verdicts of an evaluation, in the gate's form: a cost, its interval and its limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdopt.bench.evaluation.scores import SCORES, Score
from sdopt.bench.judge.verdict import Outcome, Verdict, fault
from sdopt.bench.metrics.metric import Better
from sdopt.bench.stored.summaries import FEWEST
from sdopt.errors import SdoptError, UnknownNameError
from sdopt.levels import Level, cost_is_comparable

MAIN_SCORE = "ssim_cost"
NO_INTERVAL = "one prompt: no interval"


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What the bound of an interval may not pass; of one level, or of all."""

    score: str
    value: float
    level: str | None = None


def parse_limit(text: str, levels: Sequence[str]) -> Limit:
    """'0.95', 'ssim_cost=0.95' or 'final:ssim_cost=0.95'. Raises SdoptError."""
    name, _, value = text.rpartition("=")
    level, _, score = name.rpartition(":")
    score = score or MAIN_SCORE
    if level and level not in levels:
        raise UnknownNameError("level of --limit", level, levels)
    if score not in SCORES:
        raise UnknownNameError("score of --limit", score, SCORES)
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise SdoptError(
            f"--limit is {text!r}; give [LEVEL:]SCORE=NUMBER, such as final:ssim_cost=0.95"
        )
    return Limit(score=score, value=number, level=level or None)


def check_limits(limits: Sequence[Limit], levels: Sequence[Level], reference: Level) -> None:
    """Raise SdoptError for one that nothing could fail: a cost that measures other noise."""
    for limit in limits:
        ours = [level for level in levels if limit.level in (None, level.name)]
        noise = [one.name for one in ours if not cost_is_comparable(one, reference)]
        if not (noise and is_cost(limit.score)):
            continue
        judged = ", ".join(name for name in SCORES if not is_cost(name))
        others = [one.name for one in levels if one.name not in noise]
        costs = f", or the cost of {', '.join(others)} alone (LEVEL:SCORE=X)" if others else ""
        raise SdoptError(
            f"--limit on {limit.score} cannot judge {', '.join(noise)}: against "
            f"{reference.name} it measures other noise of the sampler, not a loss; limit "
            f"{judged}, which are judged by their difference{costs}, or name another --reference"
        )


def check_count(limits: Sequence[Limit], count: int) -> None:
    """Raise SdoptError for a limit over so few prompts that there is no interval."""
    if limits and count < FEWEST:
        raise SdoptError(
            f"--limit is of an interval's bound, and {count} prompt has none; give {FEWEST} "
            "prompts or more, some hundreds for a narrow one, or leave --limit out"
        )


def is_cost(score: str) -> bool:
    """Whether it compares with the reference's image of the same seed."""
    return score.endswith(("_cost", "_cost_db"))


def judged_name(score: Score) -> str:
    """What of a score is held to a limit: of a paired one, its difference to the reference."""
    return f"{score.name}_difference" if score.paired else score.name


def verdicts_of(
    summary: Mapping[str, Any], limits: Sequence[Limit], again: str, file: str
) -> list[Verdict]:
    """One for each level's images, its main score, and every limit."""
    found = []
    for level, told in summary["levels"].items():
        if told["faults"]:
            found.append(fault(level, "images", _faults(told)))
        if level == summary["reference"]:
            continue
        ours = [limit for limit in limits if limit.level in (None, level)]
        if all(limit.score != MAIN_SCORE for limit in ours):
            found.append(_verdict(summary, level, SCORES[MAIN_SCORE], None, again, file))
        for limit in ours:
            found.append(_verdict(summary, level, SCORES[limit.score], limit.value, again, file))
    return found


def _verdict(
    summary: Mapping[str, Any],
    level: str,
    score: Score,
    limit: float | None,
    again: str,
    file: str,
) -> Verdict:
    told = summary["levels"][level]
    found = told["scores"].get(judged_name(score))
    if found is None:
        why = summary["absent"].get(score.name, "no prompt of this source has it")
        return fault(level, score.name, f"{judged_name(score)} was not measured: {why}")
    has_interval = found["count"] >= FEWEST
    interval = f"95 % interval {found['low']:.4f} to {found['high']:.4f}"
    words = (
        f"the cost of `{level}` over {found['count']} prompt{'s' * (found['count'] != 1)} is "
        f"{found['mean']:.4f} in {judged_name(score)} "
        f"({interval if has_interval else NO_INTERVAL})"
    )
    if limit is not None and not has_interval:
        return fault(level, score.name, f"{words}, and limit {limit:g} is of an interval's bound")
    outcome = Outcome.RECORDED
    if not told["comparable"] and is_cost(score.name):
        words += ", which measures other noise of the sampler, not a loss"
    elif limit is not None:
        lower = score.better is Better.LOWER
        passed = found["high"] <= limit if lower else found["low"] >= limit
        outcome = Outcome.PASS if passed else Outcome.REGRESSION
    words += ", no limit was given" if limit is None else f", limit {limit:g}"
    return Verdict(
        level=level,
        metric=score.name,
        outcome=outcome,
        reason=words,
        measured=found["mean"],
        limit=limit,
        runs=found["count"],
        file=file,
        next_step=again if outcome is Outcome.REGRESSION else "",
    )


def _faults(told: Mapping[str, Any]) -> str:
    kinds = [
        f"{what} of the prompts {', '.join(map(str, indices))}"
        for what, indices in told["faults"].items()
    ]
    return f"{told['fault_count']} images are worthless: {'; '.join(kinds)}"
