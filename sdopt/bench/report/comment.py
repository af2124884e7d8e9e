"""The Markdown that a pull request is told: verdicts in, text out; what strangers wrote stays text.

Every word that comes from a run stands in a code span. In one, GitHub knows no HTML, no links, no
mentions and no references, and `code` lets none end before it should.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sdopt.bench.judge.verdict import PASSING
from sdopt.bench.metrics import METRICS
from sdopt.bench.report.untrusted import ReportedRun, ReportedVerdict

MARKER = "<!-- sdopt gate -->"
"""How the comment is found again: its first line."""
MOST_CHARACTERS = 65_536
"""That GitHub takes as one comment."""
ROOM = 200
"""Characters kept free for the line that says what was left out."""
MOST_OF_A_REASON = 300
SENTENCES = {
    "pass": "✅ Passed: every verdict is within its limit.",
    "regression": "❌ Regression: at least one metric is worse by more than chance.",
    "fault": "❌ No verdict: the suite, or what it has stored, is broken.",
    "insufficient": "⚠️ Insufficient data: the numbers are too noisy for an answer.",
    "unfinished": "❌ No verdict: the run did not end.",
}
PASSED = tuple(outcome.value for outcome in PASSING)
HEADINGS = "| level | metric | outcome | measured | stored | limit | why |"
RULE = "|---|---|---|---:|---:|---:|---|"
UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]+")
"""Control characters, line ends, and those that turn the direction of text around."""


def comment(run: ReportedRun, commit: str, *, newest: str | None = None, link: str = "") -> str:
    """The whole comment: marker, one sentence, what failed, and all verdicts below a fold.

    `commit` is what was measured; `newest` the pull request's head, if that has moved on. `link`
    leads to the run.
    """
    lines = [MARKER, f"### sdopt: {SENTENCES[run.outcome]}", "", _measured(run, commit, link)]
    if newest and newest != commit:
        lines.append(f"\nThe pull request has moved on to {newest[:12]}, which was not measured.")
    failed = [one for one in run.verdicts if one.outcome not in PASSED]
    passed = [one for one in run.verdicts if one.outcome in PASSED]
    if failed:
        lines += ["", *_table(failed)]
    if run.unjudged:
        lines += ["", "Failed without a verdict:", "", *(f"- {code(one)}" for one in run.unjudged)]
    if passed:
        fold = [f"<details><summary>{len(passed)} verdicts passed</summary>", "", *_table(passed)]
        return _within(lines, ["", *fold], ["", "</details>"])
    return _within(lines, [], [])


def refused(reason: str, commit: str, link: str = "") -> str:
    """The comment on a run whose artifact cannot be used; the reason is this package's own."""
    where = f" [The run]({link})." if link else ""
    return "\n".join(
        [
            MARKER,
            "### sdopt: ❌ No verdict: what the run left behind cannot be used.",
            "",
            f"Commit {commit[:12]}: {code(reason)}.{where}",
        ]
    )


def code(text: str, most: int = MOST_OF_A_REASON) -> str:
    """The text as a code span that nothing in it ends, also inside of a table."""
    text = UNSEEN.sub(" ", text).strip()
    if len(text) > most:
        text = text[: most - 1] + "…"
    if not text:
        return "-"
    # GitHub finds no mention in code; after this it would not find one anywhere. A bar that is
    # escaped could still end a cell, after a backslash of the text's own.
    text = text.replace("@", "@\u200b").replace("|", "¦")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _measured(run: ReportedRun, commit: str, link: str) -> str:
    where = f" [The run]({link})." if link else ""
    on = f" on {code(run.hardware)} with {code(run.source)}" if run.hardware else ""
    return f"Commit {commit[:12]}{on}.{where}"


def _table(verdicts: Sequence[ReportedVerdict]) -> list[str]:
    return [HEADINGS, RULE, *map(_row, verdicts)]


def _row(verdict: ReportedVerdict) -> str:
    unit = METRICS[verdict.metric].unit if verdict.metric in METRICS else ""
    numbers = (_number(one, unit) for one in (verdict.measured, verdict.stored, verdict.limit))
    words = (code(verdict.level), code(verdict.metric), verdict.outcome)
    return f"| {' | '.join((*words, *numbers, code(verdict.reason)))} |"


def _number(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.6g}{' ' + unit if unit else ''}"


def _within(first: Sequence[str], more: Sequence[str], last: Sequence[str]) -> str:
    """The lines of all three, without those that GitHub would not take."""
    room = MOST_CHARACTERS - ROOM - sum(len(line) + 1 for line in last)
    kept: list[str] = []
    lines = [*first, *more]
    for number, line in enumerate(lines):
        room -= len(line) + 1
        if room < 0:
            note = f"{len(lines) - number} lines were left out; the run has them all."
            end = last if number > len(first) else []
            return "\n".join([*kept, "", note, *end])
        kept.append(line)
    return "\n".join([*kept, *last])
