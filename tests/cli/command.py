"""Commands of `sdopt` run in this process, or in one of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sdopt
from sdopt.cli.app import main

ROOT = Path(sdopt.__file__).parents[1]
STAR = "a large red star at the center on a blue background"
QUICK = ("--size", "64", "--steps", "2", "--source", "embedded")
BENCH_ONLY = ("pytest", "_pytest", "pytest_benchmark", "skimage", "scipy", "jsonschema")
WITHOUT_BENCH = f"import sys; sys.modules.update(dict.fromkeys({BENCH_ONLY}))"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a command that refuses its arguments."""
    capsys.readouterr()
    assert main([str(one) for one in arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    return told.err


def plain(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command where nothing of the suite's packages is installed."""
    given = [str(one) for one in arguments]
    code = f"{WITHOUT_BENCH}; from sdopt.cli.app import main; sys.exit(main({given!r}))"
    return subprocess.run(
        (sys.executable, "-c", code), cwd=ROOT, capture_output=True, text=True, check=False
    )
