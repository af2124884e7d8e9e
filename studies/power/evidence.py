"""What recorded pairs prove: false alarms and detections, counted in the order of recording."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median

import numpy as np

from sdopt.bench.faults.matrix import interval
from sdopt.bench.judge.statistics import student_t
from studies.power.samples import (
    Samples,
    comparisons,
    fault_against_history,
    memory_setting,
    peaks_against_history,
    unchanged_against_history,
)
from studies.power.shares import UNCHANGED, is_of_memory

HISTORIES = (3, 5, 10)
"""How many earlier runs unchanged ones are judged by."""


def evidence(samples: Samples) -> list[str]:
    """Everything about the samples, as Markdown."""
    parts = [identity(samples), false_alarms(samples), fault_table(samples), size_table(samples)]
    if any(samples.peaks(fault) for fault in samples.faults):
        parts.append(memory_table(samples))
    return [line for part in parts if part for line in (*part, "")][:-1]


def identity(samples: Samples) -> list[str]:
    """What each file is of."""
    lines = []
    for run in (run for run in samples.runs if "command" in run):
        environment = run.get("environment", {})
        versions = ", ".join(f"{name} {value}" for name, value in environment.items())
        lines += [
            f"`{samples.level}` of `{run.get('source')}` on {run.get('hardware')}; {versions}; "
            f"commit {run.get('commit')}, {run.get('date')}:",
            "",
            "```sh",
            str(run["command"]),
            "```",
            "",
        ]
    return lines[:-1]


def false_alarms(samples: Samples) -> list[str]:
    """How often unchanged runs and pairs are blamed, with exact 95 % intervals."""
    lines = [
        "| unchanged, in the order of recording | comparisons | called slower |",
        "|---|---:|---:|",
    ]
    for stored in HISTORIES:
        alarms = unchanged_against_history(samples, stored)
        lines.append(f"| a run against the {stored} before it | {len(alarms)} | {of(alarms)} |")
    answers = list(comparisons(samples.times(UNCHANGED), samples.setting.plan))
    slower = [answer == "regression" for answer in answers]
    lines.append(f"| pairs, each used once: {_listed(answers)} | {len(answers)} | {of(slower)} |")
    if peaks := samples.peaks(UNCHANGED):
        answers = list(comparisons(peaks, memory_setting().plan))
        larger = [answer == "regression" for answer in answers]
        lines.append(f"| their memory: {_listed(answers)} | {len(answers)} | {of(larger)} |")
    return lines


def _listed(answers: Iterable[str]) -> str:
    counted = Counter(answers)
    return ", ".join(f"{count} {answer}" for answer, count in counted.items()) or "too few"


def fault_table(samples: Samples) -> list[str]:
    """A row for each slowdown that was put in: what the pairs show, and what is said of them.

    The interval is that of a paired t-test, 95 %.
    """
    lines = [
        "| put in | pairs | head over base | spread of a pair | in pairs | a run against 10 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for fault in (UNCHANGED, *(f for f in samples.faults if not is_of_memory(f))):
        cells = (fault, *_change(samples.times(fault)), *_seen(samples, [fault]))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def size_table(samples: Samples) -> list[str]:
    """The same for all places together."""
    slow = [fault for fault in samples.faults if not is_of_memory(fault)]
    sizes = sorted({float(fault.partition(":")[2]) for fault in slow})
    if not sizes:
        return []
    lines = ["| slower by, anywhere | in pairs | a run against 10 |", "|---|---:|---:|"]
    for size in sizes:
        faults = [fault for fault in slow if float(fault.partition(":")[2]) == size]
        lines.append(f"| {100 * size:g} % | {' | '.join(_seen(samples, faults))} |")
    return lines


def _change(sides: Sequence[tuple[float, float]]) -> tuple[str, str, str]:
    """Number of pairs, change with its interval, spread."""
    ratios = np.log([head / base for base, head in sides])
    mean = float(ratios.mean())
    if len(ratios) < 2:
        return str(len(ratios)), f"{100 * np.expm1(mean):+.2f} %", "-"
    spread = float(ratios.std(ddof=1))
    half = student_t(0.025, len(ratios) - 1) * spread / len(ratios) ** 0.5
    low, high = (100 * np.expm1(mean + by) for by in (-half, half))
    change = f"{100 * np.expm1(mean):+.2f} % ({low:+.2f} to {high:+.2f})"
    return str(len(ratios)), change, f"{100 * spread:.2f} %"


def _seen(samples: Samples, faults: Sequence[str]) -> tuple[str, str]:
    """How often the faults are called a regression, in pairs and by one run."""
    plan = samples.setting.plan
    pairs = [
        answer == "regression"
        for fault in faults
        for answer in comparisons(samples.times(fault), plan)
    ]
    if faults == [UNCHANGED]:
        return of(pairs), of(unchanged_against_history(samples, HISTORIES[-1]))
    runs = [
        alarm for fault in faults for alarm in fault_against_history(samples, fault, HISTORIES[-1])
    ]
    return of(pairs), of(runs)


def memory_table(samples: Samples) -> list[str]:
    """A row for each fault of memory: by how much the peak rose, and who sees it."""
    lines = [
        "| put in | pairs | peak, MiB | head over base | in pairs | a run against 10 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for fault in samples.faults:
        peaks = samples.peaks(fault) if is_of_memory(fault) else []
        if not peaks:
            continue
        answers = comparisons(peaks, memory_setting().plan)
        rises = [100 * (head / base - 1) for base, head in peaks]
        base, head = (median(side) for side in zip(*peaks, strict=True))
        pairs = [answer == "regression" for answer in answers]
        lines.append(
            f"| {fault} | {len(peaks)} | {base:.1f} to {head:.1f} | {min(rises):+.2f} to "
            f"{max(rises):+.2f} % | {of(pairs)} | "
            f"{of(peaks_against_history(samples, fault, HISTORIES[-1]))} |"
        )
    return lines


def of(results: Sequence[bool]) -> str:
    """'3 of 4 (19 to 99 %)' with the exact interval of Clopper and Pearson."""
    if not results:
        return "too few"
    low, high = interval(sum(results), len(results))
    return f"{sum(results)} of {len(results)} ({100 * low:.0f} to {100 * high:.0f} %)"


def share_of(count: int, trials: int) -> str:
    """'5.0 % (3.7 to 6.5)'."""
    low, high = interval(count, trials)
    return f"{100 * count / trials:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
