"""Marks verdicts.json as unfinished before a run of benchmarks loads anything that can fail.

conftest.py loads this file by its path: it imports nothing of this package, so that a package that
cannot be imported leaves no verdict of an earlier run behind. Likewise it loads `whole_file.py`.
"""

from __future__ import annotations

import glob
import json
import os
import runpy
from pathlib import Path
from typing import Any

import pytest

SCHEMA = "sdopt-verdicts/2"  # as in sdopt/bench/report/verdicts.py
VERDICTS = "verdicts.json"
WHOLE_FILE = Path(__file__).parents[2] / "util" / "whole_file.py"
OUTCOME = "unfinished"
BENCHMARKS = "benchmarks"
ONLY_SHOW = (
    *("help", "version", "markers", "collectonly", "setuponly", "setupplan"),
    *("showfixtures", "show_fixtures_per_test"),
)
"""Options of pytest that run no test."""


def begin(config: pytest.Config) -> None:
    """Mark the file if this run is asked for benchmarks.

    Runs of other tests, and those that only show something, leave it alone, and so do workers of
    xdist. Raises UsageError if it cannot be written: an old verdict would stand.
    """
    options = config.known_args_namespace
    if not only_shows(options) and _asks_for_benchmarks(config, options):
        mark(config)


def end_without_verdicts(config: pytest.Config) -> None:
    """Remove the mark of a run that ended well and judged nothing, such as one of peers alone."""
    path = config.rootpath / VERDICTS
    if os.environ.get("PYTEST_XDIST_WORKER") or not _asks_for_benchmarks(config, config.option):
        return
    if path.exists() and json.loads(path.read_text(encoding="utf-8")).get("outcome") == OUTCOME:
        path.unlink()


def only_shows(options: Any) -> bool:
    """Whether pytest will end without running a test."""
    return any(getattr(options, name, None) for name in ONLY_SHOW)


def mark(config: pytest.Config) -> None:
    """Say in the file that its run has not ended; see `begin`."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        return
    path = config.rootpath / VERDICTS
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "exit_code": None,
        "outcome": OUTCOME,
        "run": {},
        "failed_without_verdict": [],
        "verdicts": [],
    }
    try:
        write_whole = runpy.run_path(str(WHOLE_FILE))["write_whole"]
        write_whole(path, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise pytest.UsageError(
            f"{path} cannot be written ({error}), and what stands in it is of an earlier run; "
            "let it be writable"
        ) from error


def _asks_for_benchmarks(config: pytest.Config, options: Any) -> bool:
    """Whether a path of the command line is benchmarks/, lies in it or holds it."""
    here, root = config.invocation_params.dir, config.rootpath
    asked = list(options.file_or_dir)
    if not asked and here == root:
        asked = [path for each in config.getini("testpaths") for path in glob.glob(each)]
    folder = Path(os.path.realpath(root / BENCHMARKS))
    for argument in asked or ["."]:
        path = Path(os.path.realpath(here / str(argument).partition("::")[0]))
        if path.is_relative_to(folder) or folder.is_relative_to(path):
            return True
    return False
