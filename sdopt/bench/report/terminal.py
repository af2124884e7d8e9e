"""The ladder table and the verdicts that a run ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdopt.bench.judge.verdict import Outcome, Verdict

ABSENT = "-"
LIMITED_FROM = 0.01
"""Of a level's time: so little the power limit may take unsaid."""
BLIND_FROM = 0.10
"""A pass that would not have seen this slowdown is told as such."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One measured value of the table; one of the GPU is left out where no level has it."""

    heading: str
    metric: str
    form: str
    of_gpu: bool = False


COLUMNS = (
    Column(heading="ms", metric="latency_ms", form=".1f"),
    Column(heading="speed-up", metric="speed_up", form=".2f"),
    Column(heading="GPU ms", metric="gpu_busy_ms", form=".1f", of_gpu=True),
    Column(heading="kernels", metric="kernel_launches", form="d", of_gpu=True),
    Column(heading="alloc MiB", metric="peak_allocated_mib", form=".0f", of_gpu=True),
    Column(heading="reserved", metric="peak_reserved_mib", form=".0f", of_gpu=True),
    Column(heading="used", metric="device_used_mib", form=".0f", of_gpu=True),
    Column(heading="UNet evals", metric="unet_evaluations", form="d"),
    Column(heading="drift", metric="ssim_drift", form=".6f"),
    Column(heading="cost", metric="ssim_cost", form=".4f"),
    Column(heading="truth", metric="ssim_truth", form=".4f"),
)


def ladder_table(
    levels: Sequence[str], measured: Mapping[str, Mapping[str, Any]], verdicts: Sequence[Verdict]
) -> list[str]:
    """One line per measured level: time, memory, work, likeness to three references, worst verdict.

    Speed-up is over `baseline` of the same run. A cost in parentheses is not comparable: the two
    samplers draw different noise.
    """
    shown = [
        level
        for level in levels
        if level in measured or any(verdict.level == level for verdict in verdicts)
    ]
    if not shown:
        return []
    rows = {level: with_speed_up(level, measured) for level in shown}
    columns = [
        column
        for column in COLUMNS
        if not column.of_gpu or any(column.metric in row for row in rows.values())
    ]
    lines = [("level", *(column.heading for column in columns), "verdict")]
    for level, row in rows.items():
        judged = summary([verdict for verdict in verdicts if verdict.level == level])
        lines.append((level, *(_cell(column, row) for column in columns), judged))
    return aligned(lines)


def with_speed_up(level: str, measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The level's values with `speed_up`, the latency of `baseline` over its own."""
    values = dict(measured.get(level, {}))
    base_ms, own_ms = measured.get("baseline", {}).get("latency_ms"), values.get("latency_ms")
    values["speed_up"] = base_ms / own_ms if base_ms and own_ms else None
    return values


def _cell(column: Column, values: Mapping[str, Any]) -> str:
    value = values.get(column.metric)
    if value is None:
        return ABSENT
    text = format(value, column.form) + ("x" if column.metric == "speed_up" else "")
    in_parentheses = column.metric == "ssim_cost" and not values.get("cost_is_comparable", True)
    return f"({text})" if in_parentheses else text


def summary(verdicts: Sequence[Verdict]) -> str:
    """'pass', 'recorded', the metrics that failed, or those so much better that one should look."""
    failed = dict.fromkeys(verdict.metric for verdict in verdicts if not verdict.passed)
    if failed:
        return "FAIL " + ", ".join(failed)
    if any(v.outcome is Outcome.RECORDED and v.metric == "latency_ms" for v in verdicts):
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
        if verdict.metric == "latency_ms"
        and verdict.outcome is Outcome.PASS
        and (verdict.detectable or 0) > BLIND_FROM
    ]
    if not blind:
        return []
    sees = ", ".join(
        f"{verdict.level} +{100 * (verdict.detectable or 0):.0f} %" for verdict in blind
    )
    return [
        f"slowdowns seen in 4 of 5 runs, so that a pass says little below: {sees}",
        f"  more stored runs see more: {store}",
    ]


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
