"""The self-test's findings as a table, with how sure a count of so many makes one."""

from __future__ import annotations

from collections.abc import Sequence

from sdopt.bench.faults.fault import Finding


def interval(successes: int, trials: int) -> tuple[float, float]:
    """The Clopper-Pearson confidence interval of 95 % of a probability, from 0 to 1."""
    from scipy.stats import binomtest  # half a second, which no collection has to wait for

    low, high = binomtest(successes, trials).proportion_ci(method="exact")
    return float(low), float(high)


def matrix(findings: Sequence[Finding]) -> list[str]:
    """A Markdown table: each fault, what has to catch it, and what was seen."""
    lines = ["| fault | has to be caught by | caught | seen |", "| --- | --- | --- | --- |"]
    for finding in findings:
        seen = finding.seen.splitlines()[0].replace("|", "/")
        caught = "yes" if finding.caught else "**no**"
        lines.append(f"| {finding.id} | {finding.expected} | {caught} | {seen} |")
    return lines


def totals(findings: Sequence[Finding]) -> list[str]:
    """'image: 17 of 17 right (95 % interval 80 to 100 %)' for each group."""
    groups: dict[str, list[bool]] = {}
    for finding in findings:
        groups.setdefault(finding.id.split(":")[0], []).append(finding.caught)
    lines = []
    for group, results in groups.items():
        low, high = interval(sum(results), len(results))
        lines.append(
            f"{group}: {sum(results)} of {len(results)} right "
            f"(95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
        )
    return lines
