"""How often each way of judging is wrong: `python -m sdopt.selftest.rates`.

Puts the same runs, unchanged ones and ones with a known slowdown, through this project's judgements
and through what others use, and prints a table of false alarms and of power. The runs are simulated
with a given spread, or drawn from the pairs that `sdopt.selftest.record` or `--sdopt-ab` recorded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from sdopt.ab.rounds import BLOCK_ROUNDS, latency_pair
from sdopt.rules import PRIORS
from sdopt.selftest.matrix import interval
from sdopt.selftest.shares import UNCHANGED
from sdopt.statistics import PairedPlan, judge_by_history, judge_pairs, student_t

Rounds = NDArray[np.float64]
"""Times of one level, of shape (runs, rounds)."""

SLOWDOWNS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.10)
PAIRS = PairedPlan().looks[-1]
STORED_RUNS = 10


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way of judging: whether it calls the head slower. `base` and `head` hold PAIRS runs."""

    name: str
    alarms: Callable[[Rounds, Rounds, int], bool]


def paired(base: Rounds, head: Rounds, comparisons: int) -> bool:
    """This project's A/B run: pairs are added until the answer is clear."""
    plan = PairedPlan(comparisons=comparisons)
    a, b = np.median(base, axis=1), np.median(head, axis=1)
    for look in plan.looks:
        judged = judge_pairs(a[:look].tolist(), b[:look].tolist(), plan)
        if judged is not None and judged.answer is not None:
            return judged.answer == "regression"
    return False


def against_history(base: Rounds, head: Rounds, comparisons: int) -> bool:
    """This project's ordinary run: one run of the head against the stored runs."""
    stored = np.median(base[:STORED_RUNS], axis=1).tolist()
    prior = PRIORS["latency_ms"]["cuda"]
    measured = float(np.median(head[0]))
    return measured > judge_by_history(measured, stored, prior, comparisons).limit


def mean_5_percent(base: Rounds, head: Rounds, comparisons: int) -> bool:
    """pytest-benchmark's --benchmark-compare-fail=mean:5%."""
    return bool(head[0].mean() > 1.05 * base[-1].mean())


def fixed_10_percent(base: Rounds, head: Rounds, comparisons: int) -> bool:
    """A median more than 10 % above the stored one."""
    return bool(np.median(head[0]) > 1.10 * np.median(base[-1]))


def pooled(base: Rounds, head: Rounds, comparisons: int) -> bool:
    """A Mann-Whitney test at p < 0.002 that takes the rounds of two runs for independent."""
    return bool(mannwhitneyu(head[0], base[-1], alternative="greater").pvalue < 0.002)


def pooled_with_factor(base: Rounds, head: Rounds, comparisons: int) -> bool:
    """The same and a factor of 1.1 between the medians, as asv has it."""
    return pooled(base, head, comparisons) and fixed_10_percent(base, head, comparisons)


METHODS = (
    Method(name=f"sdopt, up to {PAIRS} pairs", alarms=paired),
    Method(name=f"sdopt, one run against {STORED_RUNS} stored", alarms=against_history),
    Method(name="pytest-benchmark `mean:5%`", alarms=mean_5_percent),
    Method(name="fixed 10 %", alarms=fixed_10_percent),
    Method(name="pooled Mann-Whitney, p < 0.002", alarms=pooled),
    Method(name="pooled Mann-Whitney and factor 1.1 (asv)", alarms=pooled_with_factor),
)

Draw = Callable[[np.random.Generator], tuple[Rounds, Rounds]]
"""Makes the runs of one level: the base's and the head's, both unchanged."""


def simulated(between: float, within: float, rounds: int = 15) -> Draw:
    """Normal on logarithms; spreads between and within runs as fractions."""
    runs = max(PAIRS, STORED_RUNS)

    def draw(random: np.random.Generator) -> tuple[Rounds, Rounds]:
        def side() -> Rounds:
            level = random.normal(0, between, (runs, 1))
            return np.asarray(100 * np.exp(level + random.normal(0, within, (runs, rounds))))

        return side(), side()

    return draw


def recorded(files: Sequence[Path]) -> Draw:
    """Pairs drawn with replacement from recorded unchanged ones, which side is which by lot."""
    pairs = [pair for pair in read_pairs(files) if pair.get("fault", UNCHANGED) == UNCHANGED]
    runs = max(PAIRS, STORED_RUNS)

    def draw(random: np.random.Generator) -> tuple[Rounds, Rounds]:
        chosen = [pairs[i] for i in random.integers(0, len(pairs), runs)]
        swapped = random.integers(0, 2, runs).astype(bool)
        sides = [
            (pair["head_rounds_ms"], pair["base_rounds_ms"])[:: 1 if swap else -1]
            for pair, swap in zip(chosen, swapped, strict=True)
        ]
        return np.array([a for a, _ in sides]), np.array([b for _, b in sides])

    return draw


def read_pairs(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Every pair in verdicts.json files of A/B runs or in files of `sdopt.selftest.record`."""
    return [
        pair
        for path in files
        for pair in json.loads(path.read_text(encoding="utf-8"))["run"]["pairs"]
    ]


def fault_table(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row for each fault that was put in for real: what the pairs show, and what they say.

    The interval is that of a paired t-test, 95 %; the answer that of the last look they reach.
    """
    lines = [
        "| put in | pairs | head over base | spread of a pair | answer |",
        "|---|---:|---:|---:|---|",
    ]
    for fault in dict.fromkeys(pair["fault"] for pair in pairs):
        sides = [_run_times(pair) for pair in pairs if pair["fault"] == fault]
        ratios = np.log([head / base for base, head in sides])
        mean, spread = float(ratios.mean()), float(ratios.std(ddof=1))
        half = student_t(0.025, len(ratios) - 1) * spread / len(ratios) ** 0.5
        low, high = (100 * np.expm1(mean + by) for by in (-half, half))
        lines.append(
            f"| {fault} | {len(ratios)} | {100 * np.expm1(mean):+.2f} % ({low:+.2f} to {high:+.2f})"
            f" | {100 * spread:.2f} % | {_answer(sides)} |"
        )
    return lines


def _run_times(pair: Mapping[str, Any]) -> tuple[float, float]:
    block = BLOCK_ROUNDS[pair["device"]]
    return latency_pair(pair["base_rounds_ms"], pair["head_rounds_ms"], block)


def _answer(sides: Sequence[tuple[float, float]]) -> str:
    plan = PairedPlan()
    for look in (look for look in plan.looks if look <= len(sides)):
        judged = judge_pairs([b for b, _ in sides[:look]], [h for _, h in sides[:look]], plan)
        if judged is not None and judged.answer is not None:
            return f"{judged.answer} after {look} pairs"
    return "more pairs"


def alarms(
    method: Method, draw: Draw, slowdown: float, levels: int, trials: int, seed: int = 0
) -> int:
    """In how many of `trials` suite runs an alarm is raised.

    Without a slowdown an alarm of any level counts; with one, only the first level has it and only
    its alarm counts.
    """
    random = np.random.default_rng(seed)
    count = 0
    for _ in range(trials):
        drawn = [draw(random) for _ in range(levels if slowdown == 0 else 1)]
        count += any(method.alarms(base, head * (1 + slowdown), levels) for base, head in drawn)
    return count


def table(draw: Draw, levels: int, trials: int) -> list[str]:
    """A Markdown table: a row for each method; shares of runs with an alarm and 95 % intervals."""
    headings = ["judged by", *("false alarms" if s == 0 else f"{100 * s:g} %" for s in SLOWDOWNS)]
    lines = [f"| {' | '.join(headings)} |", "|---" + "|---:" * len(SLOWDOWNS) + "|"]
    for method in METHODS:
        counts = [alarms(method, draw, slowdown, levels, trials) for slowdown in SLOWDOWNS]
        cells = [_share(count, trials) for count in counts]
        lines.append(f"| {' | '.join([method.name, *cells])} |")
    return lines


def _share(count: int, trials: int) -> str:
    low, high = interval(count, trials)
    return f"{100 * count / trials:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m sdopt.selftest.rates", description=__doc__)
    parser.add_argument("--between", type=float, default=0.003, help="spread between runs (0.003)")
    parser.add_argument("--within", type=float, default=0.002, help="spread within a run (0.002)")
    parser.add_argument("--levels", type=int, default=9, help="levels in a suite run (9)")
    parser.add_argument("--trials", type=int, default=1000, help="suite runs per cell (1000)")
    parser.add_argument("--samples", type=Path, nargs="+", help="verdicts.json of --sdopt-ab runs")
    options = parser.parse_args(arguments)
    if options.trials < 1 or options.levels < 1 or min(options.between, options.within) < 0:
        parser.error("--trials and --levels are 1 or more, spreads are not negative")
    draw = (
        recorded(options.samples) if options.samples else simulated(options.between, options.within)
    )
    print("\n".join(table(draw, options.levels, options.trials)))
    pairs = [pair for pair in read_pairs(options.samples or ()) if "fault" in pair]
    if pairs:
        print("\n" + "\n".join(fault_table(pairs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
