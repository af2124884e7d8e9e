"""The tables of a report as plain cells: what is shown, and what it is sorted by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

from sdopt.bench.judge.verdict import first_failure
from sdopt.bench.report.page.changes import Change
from sdopt.bench.report.page.facts import Facts
from sdopt.bench.report.page.sentences import KINDS, ORDER, SIGNS, WORDS
from sdopt.bench.report.published import published_seconds
from sdopt.bench.report.terminal import ABSENT, columns_of, shown_cell

AFTER_HEADING = "speed-up"
"""The published columns stand behind it."""


@dataclass(frozen=True)
class Cell:
    """One field; `key` is what a column is sorted by, None where there is no value."""

    text: str
    key: float | str | None = None
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Headings and rows of one length; the first cell of a row names it."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def is_number(self, column: int) -> bool:
        """Whether the column stands to the right."""
        cells = [row[column] for row in self.rows]
        return any(isinstance(one.key, float) and not one.kind for one in cells)


def number_cell(value: float | None, form: str = ".1f", suffix: str = "") -> Cell:
    """A number, or a dash."""
    return Cell(ABSENT) if value is None else Cell(f"{value:{form}}{suffix}", float(value))


def ladder(facts: Facts) -> Table:
    """A row for each level of the run, in its order, with the published figures beside ours."""
    rows, published = facts.run.rows, published_seconds()
    columns = columns_of(rows.values())
    headings = ["level", "verdict"]
    table = [[Cell(name, name), _verdict(facts, name)] for name in rows]
    for metric, column in columns:
        headings.append(column.heading)
        for line, row in zip(table, rows.values(), strict=True):
            text, value = shown_cell(metric, column, row, rows.get("baseline", {}))
            line.append(Cell(text, None if value is None else float(value)))
        if column.heading == AFTER_HEADING:
            headings += ["A100 published, ms", "A100 speed-up"]
            for line in table:
                line += _published(published, line[0].text)
    headings.append("rounds")
    for line, name in zip(table, rows, strict=True):
        line.append(_rounds(facts.run.rounds_s[name]))
    return Table(headings=headings, rows=table)


def _published(published: Mapping[str, Sequence[float]], level: str) -> list[Cell]:
    there = published.get(level)
    if not there:
        return [Cell(ABSENT), Cell(ABSENT)]
    text = " / ".join(f"{1e3 * seconds:.0f}" for seconds in there)
    return [
        Cell(text, 1e3 * there[0]),
        number_cell(published["baseline"][0] / there[0], ".2f", "x"),
    ]


def _rounds(rounds_s: Sequence[float]) -> Cell:
    """How many, and how far the middle half of them is apart."""
    if len(rounds_s) < 2:
        return Cell(str(len(rounds_s)), float(len(rounds_s)))
    low, _, high = quantiles(rounds_s, n=4)
    half = 500 * (high - low)
    return Cell(f"{len(rounds_s)} (±{half:.{0 if half >= 10 else 2}f} ms)", float(len(rounds_s)))


def _verdict(facts: Facts, level: str) -> Cell:
    verdicts = facts.of_level(level)
    if not verdicts:
        return Cell(ABSENT)
    outcome = first_failure(verdicts).outcome
    return Cell(f"{SIGNS[outcome]} {WORDS[outcome]}", float(ORDER.index(outcome)), KINDS[outcome])


def stages(facts: Facts) -> Table:
    """Milliseconds of each stage that any level has."""
    names = stage_names(facts)
    rows = [
        [Cell(level, level), *(number_cell(row.get("stage_ms", {}).get(one)) for one in names)]
        for level, row in facts.run.rows.items()
    ]
    return Table(headings=["level", *(f"{name}, ms" for name in names)], rows=rows)


def stage_names(facts: Facts) -> list[str]:
    """In the order that they run in."""
    return list(
        dict.fromkeys(name for row in facts.run.rows.values() for name in row.get("stage_ms", {}))
    )


MEMORY = {
    "peak_allocated_mib": "allocated",
    "peak_reserved_mib": "reserved",
    "device_used_mib": "used on the device",
}


def memory(facts: Facts) -> Table:
    """The three peaks of each level that has them."""
    rows = [
        [Cell(level, level), *(number_cell(row.get(one), ".0f") for one in MEMORY)]
        for level, row in facts.run.rows.items()
        if any(one in row for one in MEMORY)
    ]
    return Table(headings=["level", *(f"{name}, MiB" for name in MEMORY.values())], rows=rows)


def changes(facts: Facts, found: Mapping[str, Sequence[Change]]) -> Table:
    """Every change point of every level."""
    rows = []
    for level, points in found.items():
        names = [run.path.stem for run in facts.runs_with(level)]
        for change in points:
            name = names[change.index]
            rows.append(
                [
                    Cell(level, level),
                    Cell(name, name),
                    number_cell(change.before),
                    number_cell(change.after),
                    number_cell(change.percent, "+.1f", " %"),
                ]
            )
    return Table(headings=["level", "from run", "before, ms", "after, ms", "change"], rows=rows)


def environment(facts: Facts) -> Table:
    """What the run was made on beside what the stored one was; the last cell says what differs."""
    here, there = _environment(facts.run.stored), _environment(facts.other)
    own = _own(facts)
    rows = [[Cell(name, name), Cell(value), Cell("")] for name, value in own.items()]
    for name in dict.fromkeys([*here, *there]):
        now, before = here.get(name, ABSENT), there.get(name, ABSENT)
        differs = bool(facts.other) and now != before
        shown = Cell(f"≠ {before}" if differs else "same", kind="differs" if differs else "same")
        rows.append([Cell(name, name), Cell(now), shown if facts.other else Cell(ABSENT)])
    other = facts.other.path.stem if facts.other else "no stored run"
    return Table(headings=["", "this run", other], rows=rows)


def differing(facts: Facts) -> list[str]:
    """The names of the rows in which the stored run's environment is another."""
    rows = environment(facts).rows
    return [name.text for name, _, other in rows if other.kind == "differs"]


def _environment(stored: Any) -> dict[str, str]:
    if stored is None:
        return {}
    commit = stored.commit or "unknown"
    return {"commit": commit, **stored.environment}


def _own(facts: Facts) -> dict[str, str]:
    """What the two runs share by rule, or what only this one tells."""
    run = facts.run
    first: Mapping[str, Any] = next(iter(run.rows.values()), {})
    told = {
        "hardware": run.hardware.key,
        "source": run.source,
        "baseline set": run.baseline_set,
        "dtype": str(first.get("dtype", ABSENT)),
        "size": f"{first['size_px']} px" if "size_px" in first else ABSENT,
        "guidance scale": str(first.get("guidance_scale", ABSENT)),
        "date": run.date[:19].replace("T", " "),
        "branch": str(run.commit.get("branch", ABSENT)),
        "uncommitted changes": {True: "yes", False: "no"}.get(
            run.commit.get("dirty"),  # type: ignore[arg-type]
            ABSENT,
        ),
        "processor": _processor(run.machine),
        "system": f"{run.machine.get('system', '')} {run.machine.get('release', '')}".strip(),
        "commit message": str(run.commit.get("message", "")),
    }
    return {name: value for name, value in {**told, **_gpu(run.rows)}.items() if value}


def _processor(machine: Mapping[str, Any]) -> str:
    cpu = machine.get("cpu")
    named = cpu.get("brand_raw") if isinstance(cpu, dict) else None
    return str(named or machine.get("processor") or ABSENT)


def _gpu(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Between what the GPU's clock and temperature were, over the levels."""
    units = {
        "sm_clock_mhz": ("clock", "MHz"),
        "temperature_c": ("temperature", "°C"),
        "power_w": ("power", "W"),
    }
    told = {}
    for name, (words, unit) in units.items():
        values = [row["gpu"][name] for row in rows.values() if name in row.get("gpu", {})]
        if values:
            told[f"GPU {words}"] = f"{min(values):.0f} to {max(values):.0f} {unit}"
    return told
