"""The report as Markdown, compact enough for a comment: verdicts first, tables behind a fold.

Values of a run stand in code spans, as in the gate's own comment: in them all is text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sdopt.bench.report.comment import code
from sdopt.bench.report.page import sentences, tables
from sdopt.bench.report.page.changes import Change
from sdopt.bench.report.page.evaluation import Evaluated
from sdopt.bench.report.page.facts import Facts
from sdopt.bench.report.page.quality import front, quality_of
from sdopt.bench.report.page.sentences import Sentence
from sdopt.bench.report.page.tables import Table
from sdopt.util.text import shown

MOST_CHARACTERS = 60_000
"""GitHub takes 65,536 as one comment."""
MOST_NAME, MOST_TEXT = 60, 400
MOST_LEVELS = 60
MOST_WORST = 3
HARMLESS = re.compile(r"(?!.*(:\w+:|www\.|//))[A-Za-z0-9 ,.;:%+()_/'±✓✗▲○?-]*", re.IGNORECASE)
"""Sentences and numbers in which GitHub finds no emoji, no address, and nothing else to make."""
CUT = "\n\nThe rest was left out; the HTML report has it.\n"


def render(
    facts: Facts,
    histories: Mapping[str, tuple[Any, Sequence[Change]]],
    evaluation: Evaluated | None = None,
) -> str:
    """The whole text. What is longer than a comment may be loses its end, a line at a time."""
    told = sentences.of_levels(facts)
    loud = [one for one in told if one.kind not in ("good", "plain")]
    quiet = [one for one in told if one.kind in ("good", "plain")]
    whole = sentences.of_run(facts)
    parts = [
        f"### {whole.sign} {prose(whole.text)}",
        _about(facts),
        "\n".join(f"- {_sentence(one)}" for one in loud[:MOST_LEVELS]),
        _fold("What passed", [f"- {_sentence(one)}" for one in quiet[:MOST_LEVELS]]),
        _fold("The ladder", _table(tables.ladder(facts))),
        _fold("Speed against quality", _quality(facts)),
        _fold("Quality over many prompts", _evaluation(evaluation) if evaluation else []),
        _fold("Change points in the history", _changes(facts, histories)),
        _fold("Environment", _table(tables.environment(facts))),
    ]
    return _within([part for part in parts if part])


def _name(text: str) -> str:
    return code(shown(text), MOST_NAME)


def prose(text: str) -> str:
    """A sentence as it is if nothing in it can mean anything to Markdown or GitHub; else code."""
    line = shown(text, MOST_TEXT)
    if HARMLESS.fullmatch(line):
        return line.replace("_", "\\_")
    return code(line, MOST_TEXT)


def _sentence(one: Sentence) -> str:
    return f"{one.sign} **{one.word}** {_name(one.level)}: {prose(one.text)}"


def _about(facts: Facts) -> str:
    run = facts.run
    told = [
        f"run {_name(run.name)}",
        f"against {_name(facts.other.path.stem)}"
        if facts.other
        else "nothing stored to compare with",
        f"hardware {_name(run.hardware.key)}",
        f"source {_name(run.source)}",
        f"commit {_name(run.stored.commit or 'unknown')}",
    ]
    differing = tables.differing(facts)
    if differing:
        told.append(f"different from the stored run: {', '.join(map(_name, differing))}")
    return "; ".join(told) + "."


def _quality(facts: Facts) -> list[str]:
    quality = quality_of(facts)
    if not quality.points:
        return []
    best = ", ".join(_name(point.level) for point in front(quality.points))
    return [f"On the Pareto front: {best}. Quality: {quality.what}."]


def _evaluation(evaluation: Evaluated) -> list[str]:
    lines = [prose(evaluation.note), "", *(f"- {_sentence(one)}" for one in evaluation.sentences)]
    if evaluation.table:
        lines += ["", *_table(evaluation.table)]
    for one in evaluation.levels[:MOST_LEVELS]:
        if one.worst.rows:
            worst = "; ".join(
                f"{prose(value.text)} {_name(prompt.text)}"
                for _, value, prompt in one.worst.rows[:MOST_WORST]
            )
            lines += ["", f"Worst of {_name(one.level)} by {_name(one.ranked_by)}: {worst}."]
    return lines


def _changes(facts: Facts, histories: Mapping[str, tuple[Any, Sequence[Change]]]) -> list[str]:
    table = tables.changes(facts, {level: found for level, (_, found) in histories.items()})
    return _table(table) if table.rows else []


def _table(table: Table) -> list[str]:
    columns = range(len(table.headings))
    rule = ["---:" if table.is_number(at) else "---" for at in columns]
    rows = [
        [_name(first.text), *(prose(shown(cell.text, MOST_NAME)) for cell in others)]
        for first, *others in table.rows[:MOST_LEVELS]
    ]
    head = [prose(heading) or " " for heading in table.headings]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def _fold(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    body = "\n".join(lines)
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def _within(parts: Sequence[str]) -> str:
    """Whole parts, as many as there is room for: half a fold would swallow what follows."""
    text = ""
    for part in parts:
        more = f"{text}\n\n{part}" if text else part
        if len(more) > MOST_CHARACTERS - len(CUT):
            return text + CUT
        text = more
    return text + "\n"
