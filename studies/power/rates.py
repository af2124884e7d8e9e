"""How often each way of judging is wrong: `python -m studies.power.rates`.

Puts the same runs, unchanged ones and ones with a known slowdown, through this project's judgements
and through what others use, and prints tables of false alarms and of what is seen. The runs are
simulated with a given spread, or drawn from what `studies.power.record` or `--sdopt-ab` recorded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from sdopt.bench.ab.rounds import latency_pair
from sdopt.bench.judge.statistics import PairedPlan
from sdopt.bench.report.results import write_table
from sdopt.errors import SdoptError
from studies.power.evidence import evidence, share_of
from studies.power.samples import (
    Samples,
    Setting,
    answer_of,
    for_levels,
    is_blamed,
    read_samples,
)
from studies.power.shares import PLACES

Rounds = NDArray[np.float64]
"""Times of one level, of shape (runs, rounds)."""

SLOWDOWNS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.10)
PAIRS = PairedPlan().looks[-1]
STORED_RUNS = 10
SIMULATED_ROUNDS = 15


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way of judging: whether it calls the head slower.

    The first PAIRS runs of base and head are pairs; the last STORED_RUNS of the base are what was
    stored before.
    """

    name: str
    alarms: Callable[[Rounds, Rounds, Setting], bool]


def paired(base: Rounds, head: Rounds, setting: Setting) -> bool:
    """This project's A/B run: pairs are added until the answer is clear."""
    sides = zip(base[:PAIRS].tolist(), head[:PAIRS].tolist(), strict=True)
    values = [latency_pair(*rounds, setting.block_rounds) for rounds in sides]
    return answer_of(values, setting.plan)[0] == "regression"


def against_history(base: Rounds, head: Rounds, setting: Setting) -> bool:
    """This project's ordinary run: one run of the head against the stored runs."""
    stored = np.median(base[-STORED_RUNS:], axis=1).tolist()
    measured = float(np.median(head[0]))
    return is_blamed(measured, stored, setting.prior, setting.plan.comparisons)


def mean_5_percent(base: Rounds, head: Rounds, setting: Setting) -> bool:
    """pytest-benchmark's --benchmark-compare-fail=mean:5%."""
    return bool(head[0].mean() > 1.05 * base[-1].mean())


def fixed_10_percent(base: Rounds, head: Rounds, setting: Setting) -> bool:
    """A median more than 10 % above the stored one."""
    return bool(np.median(head[0]) > 1.10 * np.median(base[-1]))


def pooled(base: Rounds, head: Rounds, setting: Setting) -> bool:
    """A Mann-Whitney test at p < 0.002 that takes the rounds of two runs for independent."""
    return bool(mannwhitneyu(head[0], base[-1], alternative="greater").pvalue < 0.002)


def pooled_with_factor(base: Rounds, head: Rounds, setting: Setting) -> bool:
    """The same and a factor of 1.1 between the medians, as asv has it."""
    return pooled(base, head, setting) and fixed_10_percent(base, head, setting)


METHODS = (
    Method(name=f"sdopt, up to {PAIRS} pairs", alarms=paired),
    Method(name=f"sdopt, one run against {STORED_RUNS} stored", alarms=against_history),
    Method(name="pytest-benchmark `mean:5%`", alarms=mean_5_percent),
    Method(name="fixed 10 %", alarms=fixed_10_percent),
    Method(name="pooled Mann-Whitney, p < 0.002", alarms=pooled),
    Method(name="pooled Mann-Whitney and factor 1.1 (asv)", alarms=pooled_with_factor),
)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Where runs come from: `draw` makes those of one level with that slowdown in the head.

    Slowdowns are multiplied into times, but for the `real` ones, which processes carried.
    """

    draw: Callable[[np.random.Generator, float], tuple[Rounds, Rounds]]
    setting: Setting
    real: Sequence[float] = ()

    def heading(self, slowdown: float) -> str:
        """What a column of the table is about."""
        if slowdown == 0:
            return "false alarms"
        return f"{100 * slowdown:g} %{', real' if slowdown in self.real else ''}"


def simulated(between: float, within: float) -> Runs:
    """Normal on logarithms; spreads between and within runs as fractions."""
    runs = max(PAIRS, STORED_RUNS)

    def draw(random: np.random.Generator, slowdown: float) -> tuple[Rounds, Rounds]:
        def side() -> Rounds:
            level = random.normal(0, between, (runs, 1))
            noise = random.normal(0, within, (runs, SIMULATED_ROUNDS))
            return np.asarray(100 * np.exp(level + noise))

        base, head = side(), side()
        return base, head * (1 + slowdown)

    return Runs(draw=draw, setting=Setting(block_rounds=SIMULATED_ROUNDS))


def recorded(samples: Samples) -> Runs:
    """Drawn with replacement from recorded pairs, unchanged ones or ones of a real slowdown.

    For each comparison the place of the slowdown is chosen by lot, and of unchanged pairs which
    side is which. What was stored before is drawn from all unchanged runs. For a slowdown that was
    recorded too seldom an unchanged head's times are multiplied.
    """
    found = {size: _places(samples, size) for size in SLOWDOWNS if size}

    def draw(random: np.random.Generator, slowdown: float) -> tuple[Rounds, Rounds]:
        places = found.get(slowdown) or [samples.unchanged]
        pairs = places[random.integers(len(places))]
        sides = [_sides(pairs[i]) for i in random.integers(0, len(pairs), PAIRS)]
        if pairs is samples.unchanged:
            sides = [side[:: 1 - 2 * int(random.integers(2))] for side in sides]
        stored = [
            _sides(samples.unchanged[i])[random.integers(2)]
            for i in random.integers(0, len(samples.unchanged), STORED_RUNS)
        ]
        base, head = (np.array([side[k] for side in sides]) for k in (0, 1))
        slower = head * (1 + slowdown) if pairs is samples.unchanged else head
        return np.concatenate([base, stored]), slower

    real = [size for size, places in found.items() if places]
    return Runs(draw=draw, setting=samples.setting, real=real)


def _places(samples: Samples, size: float) -> list[list[Mapping[str, Any]]]:
    """The pairs with that slowdown, place by place; at least as many as a comparison may take."""
    by_place = [samples.of(f"{place}:{size:g}") for place in PLACES]
    return [pairs for pairs in by_place if len(pairs) >= PAIRS]


def _sides(pair: Mapping[str, Any]) -> list[list[float]]:
    return [pair["base_rounds_ms"], pair["head_rounds_ms"]]


def alarms(
    method: Method, runs: Runs, slowdown: float, levels: int, trials: int, seed: int = 0
) -> int:
    """In how many of `trials` suite runs an alarm is raised.

    Without a slowdown an alarm of any level counts; with one, only the first level has it and only
    its alarm counts.
    """
    random = np.random.default_rng(seed)
    setting = for_levels(runs.setting, levels)
    count = 0
    for _ in range(trials):
        drawn = [runs.draw(random, slowdown) for _ in range(levels if slowdown == 0 else 1)]
        count += any(method.alarms(base, head, setting) for base, head in drawn)
    return count


def counts(runs: Runs, levels: int, trials: int) -> dict[str, list[int]]:
    """Alarms of each method, for each slowdown of the runs."""
    return {
        method.name: [alarms(method, runs, size, levels, trials) for size in SLOWDOWNS]
        for method in METHODS
    }


def table(runs: Runs, levels: int, trials: int) -> list[str]:
    """A Markdown table: a row for each method; shares of runs with an alarm and 95 % intervals."""
    headings = " | ".join(runs.heading(size) for size in SLOWDOWNS)
    lines = [f"| judged by | {headings} |", "|---" + "|---:" * len(SLOWDOWNS) + "|"]
    for name, row in counts(runs, levels, trials).items():
        cells = [share_of(count, trials) for count in row]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables and maybe write them into a page; 2 if a file or the page is unusable."""
    parser = argparse.ArgumentParser(prog="python -m studies.power.rates", description=__doc__)
    parser.add_argument("--between", type=float, default=0.003, help="spread between runs (0.003)")
    parser.add_argument("--within", type=float, default=0.002, help="spread within a run (0.002)")
    parser.add_argument("--levels", type=int, help="levels in a suite run (9, of samples 1)")
    parser.add_argument("--trials", type=int, default=1000, help="suite runs per cell (1000)")
    parser.add_argument("--samples", type=Path, nargs="+", help="files of recorded pairs")
    parser.add_argument("--page", type=Path, help="page to write the tables into")
    parser.add_argument("--mark", help="between these marks in it (device and level)")
    options = parser.parse_args(arguments)
    levels = options.levels if options.levels is not None else 1 if options.samples else 9
    if options.trials < 1 or levels < 1 or min(options.between, options.within) < 0:
        parser.error("--trials and --levels are 1 or more, spreads are not negative")
    try:
        name, lines = _answer(options, levels)
        if options.page:
            write_table(options.page, lines, options.mark or name)
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


def _answer(options: argparse.Namespace, levels: int) -> tuple[str, list[str]]:
    """The name of the tables in a page, and the tables."""
    if not options.samples:
        runs = simulated(options.between, options.within)
        name = f"simulated {options.between:g} {options.within:g}"
        return name, table(runs, levels, options.trials)
    samples = read_samples(options.samples)
    lines = table(recorded(samples), levels, options.trials)
    if any("fault" in pair for pair in samples.pairs):
        lines = [*evidence(samples), "", *lines]
    return f"{samples.device} {samples.level}", lines


if __name__ == "__main__":
    sys.exit(main())
