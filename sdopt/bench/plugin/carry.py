"""Show that the gate sees a fault: `SDOPT_FAULT=loop:0.1 pytest ... -p sdopt.bench.plugin.carry`.

Every pipeline of the run carries the fault, one of `sdopt.bench.ab.slowdowns`, once it is warm.
Such a run stores nothing.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from sdopt.bench.ab.slowdowns import parse
from sdopt.bench.plugin.keys import SESSION
from sdopt.errors import SdoptError

VARIABLE = "SDOPT_FAULT"


def pytest_configure(config: pytest.Config) -> None:
    """Hand the fault to the suite. Raises UsageError for a bad fault or a run that would store."""
    fault = os.environ.get(VARIABLE, "")
    try:
        parse(fault)
    except SdoptError as error:
        raise pytest.UsageError(f"-p {__name__} carries ${VARIABLE}: {error}") from error
    _refuse_storing(config.option)
    config.stash[SESSION].pool.fault = fault


def _refuse_storing(option: Any) -> None:
    options = {
        "--sdopt-accept": option.sdopt_accept,
        "--benchmark-save": option.benchmark_save,
        "--benchmark-autosave": option.benchmark_autosave,
        "--sdopt-ab": option.sdopt_ab,
        "--sdopt-selftest": option.sdopt_selftest,
        "--sdopt-compile-cache": option.sdopt_compile_cache,
    }
    wrong = [name for name, wanted in options.items() if wanted]
    if wrong:
        raise pytest.UsageError(
            f"-p {__name__} puts a fault into every pipeline: it cannot be combined with "
            f"{', '.join(wrong)}; drop one"
        )


def pytest_report_header(config: pytest.Config) -> str:
    """Say it before anything else is read."""
    return f"sdopt: FAULT CARRIED ON PURPOSE: {config.stash[SESSION].pool.fault}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say it once more beside the verdicts."""
    fault = config.stash[SESSION].pool.fault
    terminalreporter.section(f"every pipeline carried {fault} on purpose; nothing was stored")
