"""Reads the verdicts of a run that somebody else's code made: data, and nothing to trust.

A pull request's code wrote this file. So it is read like a stranger's: its size is bounded before
it is read, every field is checked, and what is not known is dropped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdopt.bench.judge.verdict import ExitCode, Outcome
from sdopt.bench.report.verdicts import SCHEMA
from sdopt.errors import BrokenFileError

VERDICTS, COMMIT = "verdicts.json", "commit"
MOST_BYTES = 4 * 2**20
MOST_VERDICTS = 5000
MOST_CHARACTERS = 4000
"""Of one text."""
SHA = re.compile(r"[0-9a-f]{40}")
OUTCOMES = (*(code.name.lower() for code in ExitCode), "unfinished")
WORDS = tuple(outcome.value for outcome in Outcome)


@dataclass(frozen=True, kw_only=True)
class ReportedVerdict:
    """One verdict as it was reported: see `sdopt.bench.judge.verdict.Verdict`."""

    level: str
    metric: str
    outcome: str
    reason: str
    measured: float | None
    stored: float | None
    limit: float | None
    next_step: str


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """What a run says of itself; `unjudged` are tests that failed without a verdict."""

    outcome: str
    source: str
    hardware: str
    unjudged: tuple[str, ...]
    verdicts: tuple[ReportedVerdict, ...]


def read_run(folder: Path, commit: str) -> ReportedRun:
    """The verdicts in an artifact that was unpacked into `folder`.

    Raises BrokenFileError for one that is too large, no UTF-8, of another commit, or of another
    form.
    """
    measured = _text(folder / COMMIT, most_bytes=100).strip()
    if measured != commit:
        found = measured if SHA.fullmatch(measured) else "something that is no commit"
        raise BrokenFileError(f"{folder} is of another commit: {found}, not {commit}")
    path = folder / VERDICTS
    content = _text(path, MOST_BYTES)
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BrokenFileError(f"{path} is no JSON: {type(error).__name__}") from error
    return _run(path, data)


def _text(path: Path, most_bytes: int) -> str:
    """A file of the artifact; never one that a link leads to."""
    if path.is_symlink() or not path.is_file():
        raise BrokenFileError(f"{path} is missing or no plain file")
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise BrokenFileError(f"{path} is larger than {most_bytes} bytes; it was not read")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BrokenFileError(f"{path} is no UTF-8 text") from error


def _run(path: Path, data: Any) -> ReportedRun:
    fields = _object(path, "the file", data)
    if fields.get("schema") != SCHEMA:
        raise BrokenFileError(f"{path} has another schema than {SCHEMA}")
    run = _object(path, "run", fields.get("run"))
    return ReportedRun(
        outcome=_choice(path, "outcome", fields.get("outcome"), OUTCOMES),
        source=_word(path, "source", run.get("source", "")),
        hardware=_word(path, "hardware", run.get("hardware", "")),
        unjudged=tuple(
            _word(path, "a failed test", one)
            for one in _list(path, "failed_without_verdict", fields.get("failed_without_verdict"))
        ),
        verdicts=tuple(
            _verdict(path, one) for one in _list(path, "verdicts", fields.get("verdicts"))
        ),
    )


def _verdict(path: Path, data: Any) -> ReportedVerdict:
    fields = _object(path, "a verdict", data)
    numbers = {
        name: _number(path, name, fields.get(name)) for name in ("measured", "stored", "limit")
    }
    return ReportedVerdict(
        level=_word(path, "level", fields.get("level")),
        metric=_word(path, "metric", fields.get("metric")),
        outcome=_choice(path, "a verdict's outcome", fields.get("outcome"), WORDS),
        reason=_word(path, "reason", fields.get("reason")),
        next_step=_word(path, "next_step", fields.get("next_step", "")),
        **numbers,
    )


def _object(path: Path, what: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BrokenFileError(f"{path}: {what} is no object")
    return value


def _list(path: Path, what: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > MOST_VERDICTS:
        raise BrokenFileError(f"{path}: {what} is no list of {MOST_VERDICTS} at most")
    return value


def _word(path: Path, what: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > MOST_CHARACTERS:
        raise BrokenFileError(f"{path}: {what} is no text of {MOST_CHARACTERS} characters at most")
    return value.encode("utf-8", "replace").decode("utf-8")  # JSON may hold half a character


def _choice(path: Path, what: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise BrokenFileError(f"{path}: {what} is none of {', '.join(choices)}")
    return str(value)


def _number(path: Path, what: str, value: Any) -> float | None:
    """A finite number; what JSON cannot hold stands there as a word, and is shown as none."""
    if value is None or isinstance(value, str):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BrokenFileError(f"{path}: {what} is no number")
    try:
        number = float(value)
    except OverflowError as error:
        raise BrokenFileError(f"{path}: {what} is no finite number") from error
    if not math.isfinite(number):
        raise BrokenFileError(f"{path}: {what} is no finite number")
    return number
