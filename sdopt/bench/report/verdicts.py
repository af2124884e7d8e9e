"""All verdicts of a run as one JSON file; docs/reference/verdicts.md has its schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdopt.bench.judge.verdict import ExitCode, Verdict
from sdopt.util.files import write_whole

SCHEMA = "sdopt-verdicts/2"


def as_dict(verdict: Verdict) -> dict[str, Any]:
    """One verdict with the outcome's word; numbers that JSON has none for become text."""
    fields = {**vars(verdict), "outcome": verdict.outcome.value, "passed": verdict.passed}
    return {
        name: repr(value) if isinstance(value, float) and value - value != 0 else value
        for name, value in fields.items()
    }


def write_verdicts(
    path: Path,
    verdicts: Sequence[Verdict],
    code: ExitCode,
    unjudged: Sequence[str],
    run: Mapping[str, Any],
) -> None:
    """Write the file whole. `unjudged` are tests that failed without a verdict."""
    content = {
        "schema": SCHEMA,
        "exit_code": int(code),
        "outcome": code.name.lower(),
        "run": dict(run),
        "failed_without_verdict": list(unjudged),
        "verdicts": [as_dict(verdict) for verdict in verdicts],
    }
    write_whole(path, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")
