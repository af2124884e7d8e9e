"""Recorded pairs, and what this project's judgements say of them in the order of recording."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from sdopt.bench.ab.rounds import BLOCK_ROUNDS, latency_pair
from sdopt.bench.judge.rules import plan_of
from sdopt.bench.judge.statistics import PairedPlan, judge_by_history, judge_pairs
from sdopt.bench.metrics.memory import PEAK_PAIRS, PEAK_RULE
from sdopt.bench.metrics.metric import Prior
from sdopt.bench.metrics.time import LATENCY_PAIRS, LATENCY_RULE
from sdopt.errors import BrokenFileError
from sdopt.levels import LEVELS
from studies.power.shares import UNCHANGED

Values = Sequence[tuple[float, float]]
"""The base's and the head's value of each pair."""
PLAN = PairedPlan()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How runs are judged: the plan of pairs, what a history assumes, how rounds are grouped."""

    plan: PairedPlan = PLAN
    prior: Prior = LATENCY_RULE.priors["cuda"]
    block_rounds: int = 1


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Pairs of one level, in the order of recording; `runs` says what each file's are of."""

    pairs: Sequence[Mapping[str, Any]]
    runs: Sequence[Mapping[str, Any]] = ()

    @property
    def faults(self) -> list[str]:
        """Every fault that was put in, in the order of recording; not 'none'."""
        return [f for f in dict.fromkeys(map(_fault, self.pairs)) if f != UNCHANGED]

    def of(self, fault: str) -> list[Mapping[str, Any]]:
        """The pairs with that fault."""
        return [pair for pair in self.pairs if _fault(pair) == fault]

    @cached_property
    def unchanged(self) -> list[Mapping[str, Any]]:
        """The pairs without any."""
        return self.of(UNCHANGED)

    @property
    def device(self) -> str:
        """'cpu' or 'cuda'; A/B runs do not say it, and their rounds are grouped as on a CPU."""
        return str(self.pairs[0].get("device", "cpu"))

    @property
    def level(self) -> str:
        """The level of the first pair."""
        return str(self.pairs[0].get("level", "final"))

    @property
    def setting(self) -> Setting:
        """How the suite judges this level on this device."""
        noise = LATENCY_RULE.noise(self.device, LEVELS[self.level])
        return Setting(
            plan=plan_of(LATENCY_PAIRS, noise, comparisons=1),
            prior=LATENCY_RULE.priors[noise],
            block_rounds=BLOCK_ROUNDS[self.device],
        )

    def times(self, fault: str) -> list[tuple[float, float]]:
        """The latency of base and head in each pair with that fault, as an A/B run takes them."""
        block = self.setting.block_rounds
        return [
            latency_pair(pair["base_rounds_ms"], pair["head_rounds_ms"], block)
            for pair in self.of(fault)
        ]

    def peaks(self, fault: str) -> list[tuple[float, float]]:
        """The peaks of base and head in each pair with that fault; none without CUDA."""
        return [
            (pair["base_peak_mib"], pair["head_peak_mib"])
            for pair in self.of(fault)
            if pair.get("base_peak_mib") is not None
        ]


def read_samples(files: Sequence[Path]) -> Samples:
    """Every pair in files of `studies.power.record` or verdicts.json files of A/B runs.

    Raises BrokenFileError for one without pairs.
    """
    runs, pairs = [], []
    for path in files:
        try:
            run = json.loads(path.read_text(encoding="utf-8"))["run"]
            pairs += list(run["pairs"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BrokenFileError(f"{path} holds no recorded pairs: {error!r}") from error
        runs.append({name: value for name, value in run.items() if name != "pairs"})
    if not pairs:
        raise BrokenFileError(f"no pair was recorded in {', '.join(map(str, files))}")
    return Samples(pairs=pairs, runs=runs)


def _fault(pair: Mapping[str, Any]) -> str:
    return str(pair.get("fault", UNCHANGED))


def comparisons(values: Values, plan: PairedPlan) -> Iterator[str]:
    """The answers of one A/B comparison after the other, each on pairs of its own.

    Each takes as many pairs as it needs; pairs at the end that give no answer are left out.
    """
    while values:
        answer, used = answer_of(values, plan)
        if answer is None:
            return
        yield answer
        values = values[used:]


def answer_of(values: Values, plan: PairedPlan) -> tuple[str | None, int]:
    """What the first pairs say and how many that took; None if they are too few."""
    for look in (look for look in plan.looks if look <= len(values)):
        base, head = zip(*values[:look], strict=True)
        judged = judge_pairs(base, head, plan)
        if judged is not None and judged.answer is not None:
            return judged.answer, look
    return None, len(values)


def unchanged_against_history(samples: Samples, stored: int) -> list[bool]:
    """Whether each unchanged run is blamed for its time, given the `stored` runs before it.

    The bases' runs and the heads' are two histories, so that no run is judged by its own partner.
    """
    block = samples.unchanged
    alarms = []
    for side in ("base", "head"):
        values = [median(pair[f"{side}_rounds_ms"]) for pair in block]
        alarms += [
            is_blamed(value, values[i - stored : i], samples.setting.prior)
            for i, value in enumerate(values)
            if i >= stored
        ]
    return alarms


def fault_against_history(samples: Samples, fault: str, stored: int) -> list[bool]:
    """Whether each run with that fault is, given the `stored` unchanged bases before its pair."""
    alarms = []
    for pair in samples.of(fault):
        earlier = [p for p in samples.unchanged if p["pair"] < pair["pair"]][-stored:]
        if len(earlier) == stored:
            bases = [median(p["base_rounds_ms"]) for p in earlier]
            measured = median(pair["head_rounds_ms"])
            alarms.append(is_blamed(measured, bases, samples.setting.prior))
    return alarms


def peaks_against_history(samples: Samples, fault: str, stored: int) -> list[bool]:
    """The same of peak memory."""
    prior = PEAK_RULE.priors["cuda"]
    bases = [base for base, _ in samples.peaks(UNCHANGED)][:stored]
    if len(bases) < stored:
        return []
    return [is_blamed(head, bases, prior) for _, head in samples.peaks(fault)]


def is_blamed(measured: float, stored: Sequence[float], prior: Prior, comparisons: int = 1) -> bool:
    """Whether a run that makes so many comparisons is called a regression by this one."""
    judged = judge_by_history(measured, stored, prior, comparisons)
    return measured > judged.limit or judged.drift is not None


def memory_setting() -> Setting:
    """How peaks are judged."""
    return Setting(plan=plan_of(PEAK_PAIRS, "cuda", comparisons=1), prior=PEAK_RULE.priors["cuda"])


def for_levels(setting: Setting, levels: int) -> Setting:
    """The same in a suite run of that many levels, which share one error rate."""
    return replace(setting, plan=replace(setting.plan, comparisons=levels))
