"""The ladder table and the verdicts that a run ends with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdopt.bench.judge.verdict import Outcome, Verdict
from sdopt.bench.metrics import METRICS
from sdopt.bench.metrics.metric import Column, Metric, Row
from sdopt.bench.metrics.time import LATENCY

ABSENT = "-"
LIMITED_FROM = 0.01
"""Of a level's time: so little the power limit may take unsaid."""
BLIND_FROM = 0.10
"""A pass that would not have seen this slowdown is told as such."""
SEES_NOTHING = 10.0
"""Two stored runs that differ widely would not have seen even this one, or a far larger one."""


COLUMNS = sorted(
    ((metric, column) for metric in METRICS.values() for column in metric.columns),
    key=lambda pair: pair[1].place,
)
"""Every column that a metric asks for, with the metric, from left to right."""


def ladder_table(
    levels: Sequence[str], measured: Mapping[str, Mapping[str, Any]], verdicts: Sequence[Verdict]
) -> list[str]:
    """One line per measured level: time, memory, work, likeness to three references, worst verdict.

    Speed-up is over the first of the levels, in the same run. A cost in parentheses is not
    comparable: the two samplers draw different noise.
    """
    shown = [
        level
        for level in levels
        if level in measured or any(verdict.level == level for verdict in verdicts)
    ]
    if not shown:
        return []
    rows = {level: measured.get(level, {}) for level in shown}
    columns = columns_of(rows.values())
    lines = [("level", *(column.heading for _, column in columns), "verdict")]
    baseline = measured.get(levels[0], {})
    for level, row in rows.items():
        judged = summary([verdict for verdict in verdicts if verdict.level == level])
        cells = (shown_cell(metric, column, row, baseline)[0] for metric, column in columns)
        lines.append((level, *cells, judged))
    return aligned(lines)


def columns_of(rows: Iterable[Row]) -> list[tuple[Metric, Column]]:
    """The columns of a table of these rows: an optional one only where a row has its metric."""
    have = {name for row in rows for name, value in row.items() if value is not None}
    return [
        (metric, column) for metric, column in COLUMNS if not column.optional or metric.name in have
    ]


def shown_cell(metric: Metric, column: Column, row: Row, baseline: Row) -> tuple[str, float | None]:
    """What the table shows of a row in a column, and the value behind it."""
    value = column.value(row, baseline) if column.value else row.get(metric.name)
    if value is None:
        return ABSENT, None
    # A file may hold a count as 20.0, which has no form 'd'.
    form = "g" if column.form == "d" and isinstance(value, float) else column.form
    text = format(value, form) + column.suffix
    return (f"({text})" if column.in_parentheses(row) else text), value


def summary(verdicts: Sequence[Verdict]) -> str:
    """'pass', 'recorded', the metrics that failed, or those so much better that one should look."""
    failed = dict.fromkeys(verdict.metric for verdict in verdicts if not verdict.passed)
    if failed:
        return "FAIL " + ", ".join(failed)
    if any(v.outcome is Outcome.RECORDED and v.metric == LATENCY.name for v in verdicts):
        return "pass (latency recorded)"
    better = [v.metric for v in verdicts if v.outcome is Outcome.IMPROVEMENT]
    if better:
        return f"pass (better than stored: {', '.join(better)})"
    return "pass" if verdicts else ABSENT


def blind_note(verdicts: Sequence[Verdict], store: str) -> list[str]:
    """What a pass does not say: how large a slowdown the stored runs are too few to see."""
    blind = [
        verdict
        for verdict in verdicts
        if verdict.metric == LATENCY.name
        and verdict.outcome is Outcome.PASS
        and (verdict.detectable or 0) > BLIND_FROM
    ]
    if not blind:
        return []
    sees = ", ".join(f"{verdict.level} {_least(verdict.detectable or 0)}" for verdict in blind)
    return [
        f"a pass may hide a slowdown; 4 of 5 runs would show one of: {sees}",
        f"  more stored runs see more: {store}",
    ]


def _least(detectable: float) -> str:
    """The least slowdown that is seen, or that none is."""
    return "none" if detectable >= SEES_NOTHING else f"+{100 * detectable:.0f} %"


def power_note(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The levels whose clocks the card's power limit lowered, and for how much of their time."""
    shares = {
        level: row.get("gpu", {}).get("power_limited", 0.0) for level, row in measured.items()
    }
    met = ", ".join(
        f"{level} {100 * share:.0f} % of its time"
        for level, share in shares.items()
        if share > LIMITED_FROM
    )
    return [f"the power limit lowered the clocks: {met}"] if met else []


def absence_note() -> list[str]:
    """What this installation cannot measure, and why."""
    return [
        f"{metric.name} is not measured: {why}"
        for metric in METRICS.values()
        if (why := metric.absence)
    ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest entry, the first and last to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(widths) - 1
    return [
        "  ".join(
            text.ljust(width) if column in (0, last) else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
