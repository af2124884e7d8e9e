"""The ladder table and the verdicts that a run ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdopt.gate import Outcome, Verdict

HEADINGS = ("level", "ms", "speed-up", "UNet evals", "drift", "cost", "truth", "verdict")
ABSENT = "-"


def ladder_table(
    levels: Sequence[str], measured: Mapping[str, Mapping[str, Any]], verdicts: Sequence[Verdict]
) -> list[str]:
    """One line per measured level: time, work, likeness to three references, worst verdict.

    Speed-up is over `baseline` of the same run. A cost in parentheses is not comparable: the two
    samplers draw different noise.
    """
    base_ms = measured.get("baseline", {}).get("latency_ms")
    rows = [
        _row(level, measured.get(level, {}), base_ms, [v for v in verdicts if v.level == level])
        for level in levels
        if level in measured or any(v.level == level for v in verdicts)
    ]
    return _aligned([HEADINGS, *rows]) if rows else []


def _row(
    level: str, values: Mapping[str, Any], base_ms: float | None, verdicts: Sequence[Verdict]
) -> tuple[str, ...]:
    latency_ms = values.get("latency_ms")
    cost = _number(values.get("ssim_cost"), ".4f")
    if cost != ABSENT and not values.get("cost_is_comparable", True):
        cost = f"({cost})"
    return (
        level,
        _number(latency_ms, ".1f"),
        f"{base_ms / latency_ms:.2f}x" if base_ms and latency_ms else ABSENT,
        _number(values.get("unet_evaluations"), "d"),
        _number(values.get("ssim_drift"), ".6f"),
        cost,
        _number(values.get("ssim_truth"), ".4f"),
        summary(verdicts),
    )


def summary(verdicts: Sequence[Verdict]) -> str:
    """'pass', 'recorded', or the metrics that failed."""
    failed = dict.fromkeys(verdict.metric for verdict in verdicts if not verdict.passed)
    if failed:
        return "FAIL " + ", ".join(failed)
    if any(v.outcome is Outcome.RECORDED and v.metric == "latency_ms" for v in verdicts):
        return "pass (latency recorded)"
    return "pass" if verdicts else ABSENT


def _number(value: Any, form: str) -> str:
    return ABSENT if value is None else format(value, form)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
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
