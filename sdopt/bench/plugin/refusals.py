"""Options under which a run could not do what it was asked for: refused before it generates."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest

from sdopt.bench.judge.verdict import ExitCode

TIMER = "time.perf_counter"
"""What every stored run was timed with."""


def a_name(text: str) -> str:
    """The value of an option. Raises ArgumentTypeError if it is empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError(
            "the value is empty (an unset variable?); give one, or leave the option out"
        )
    return text


def a_path(text: str) -> Path:
    """The same for a path; `Path("")` would be the current folder."""
    return Path(a_name(text))


def refuse_empty_values(option: Any) -> None:
    """Raise UsageError for options of pytest-benchmark that were given and say nothing."""
    compare = option.benchmark_compare
    if isinstance(compare, str) and not compare.strip():
        raise pytest.UsageError(
            "--benchmark-compare= has an empty value (an unset variable?) and would compare with "
            "nothing; name a run, as in --benchmark-compare=0003, or leave the = out for the newest"
        )
    json_file = option.benchmark_json
    if json_file is not None and (json_file.is_dir() or not json_file.parent.is_dir()):
        raise pytest.UsageError(
            f"--benchmark-json={json_file}: no file can be written there; name one in a folder "
            "that exists"
        )


def refuse_other_measurements(option: Any) -> None:
    """Raise UsageError for options that measure something else than what is stored."""
    if not (option.benchmark_compare or stores(option)):
        return
    if option.benchmark_timer != TIMER:
        raise pytest.UsageError(
            f"--benchmark-timer={option.benchmark_timer}: stored times are those of {TIMER}, and "
            "no other clock is compared with or stored beside them; drop it"
        )
    if option.benchmark_disable_gc:
        raise pytest.UsageError(
            "--benchmark-disable-gc: stored times are those with the garbage collector on; drop it"
        )
    if option.setuponly or option.setupplan:
        raise pytest.UsageError("--setup-only and --setup-plan run no benchmark; drop them")


def refuse_to_store_nothing(config: pytest.Config, unfit: str | None) -> None:
    """End the run with the code of a fault if it is to store what it will not measure."""
    option = config.option
    if os.environ.get("PYTEST_XDIST_WORKER"):
        return  # its controller has ended
    if unfit and stores(option):
        pytest.exit(f"nothing can be stored: {unfit}", returncode=int(ExitCode.FAULT))
    if option.sdopt_accept and distributed(option):
        pytest.exit(
            "nothing can be accepted: processes of xdist (-n) would overwrite each other's counts; "
            "drop it",
            returncode=int(ExitCode.FAULT),
        )


def stores(option: Any) -> bool:
    """Whether the run is to write its measurements."""
    return bool(option.benchmark_save or option.benchmark_autosave or option.benchmark_json)


def distributed(option: Any) -> bool:
    """Whether xdist shares the tests out."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    return bool(worker or getattr(option, "dist", "no") != "no")


def unfit(option: Any) -> str | None:
    """Why pytest-benchmark will not measure in this run, if it will not."""
    if distributed(option):
        return "benchmarks are distributed by xdist (-n), so their timings mean nothing; drop it"
    if option.benchmark_disable and not option.benchmark_enable:
        return "benchmarks are disabled (--benchmark-disable); drop it"
    if option.benchmark_skip and not option.benchmark_only:
        return "benchmarks are skipped (--benchmark-skip); drop it"
    return None


class NothingStored:
    """Ends a run as a fault that was to store its measurements and made none."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.reason: str | None = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Any:
        """Before pytest-benchmark, which would only warn."""
        benchmarks: Any = self.config._benchmarksession  # type: ignore[attr-defined]
        measured = any(not bench.has_error for bench in benchmarks.benchmarks)
        asked = stores(self.config.option) and not self.config.option.collectonly
        if asked and not measured:
            self.reason = "nothing was stored: no benchmark of this run measured anything"
            benchmarks.save = benchmarks.autosave = benchmarks.json = None
            if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
                session.exitstatus = int(ExitCode.FAULT)
        return (yield)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Why."""
        if self.reason:
            terminalreporter.write_line(self.reason, red=True)
