"""pytest-benchmark stores a run through this project's history, with what each level measured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sdopt.bench.plugin import refusals, unfinished
from sdopt.bench.plugin.keys import SESSION
from sdopt.bench.plugin.selection import left_benchmarks_out
from sdopt.bench.session import Session
from sdopt.bench.session.leftovers import tidy
from sdopt.bench.stored import history
from sdopt.util.partial_files import SUFFIX, remove_stale


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Let pytest-benchmark store through this project's history, if there is something to store."""
    own = session.config.stash[SESSION]
    if not os.environ.get("PYTEST_XDIST_WORKER"):
        own.left_behind += tidy(own.store.root)
        remove_stale(session.config.rootpath.glob(f"{unfinished.VERDICTS}*{SUFFIX}"))
    refusals.refuse_to_store_nothing(session.config, own.run.settings.unfit)
    session.config._benchmarksession.storage = HistoryStorage(own, session)  # type: ignore[attr-defined]


class HistoryStorage:
    """The one method of pytest-benchmark's storage that saving a run needs."""

    def __init__(self, own: Session, session: pytest.Session) -> None:
        self.own = own
        self.session = session
        self.note = ""

    def save(self, output_json: Mapping[str, Any], save: str) -> None:
        """Store the run whole, unless a test failed: a baseline nobody vouches for is none."""
        failed = self.session.testsfailed
        if failed:
            self.note = f"this run was not saved: {failed} of its tests failed"
        elif output_json["benchmarks"]:
            partial = left_benchmarks_out(self.session.config)
            folder = self.own.store.history_folder
            path = history.save_run(folder, save, output_json, partial=partial)
            self.note = f"saved this run as {path}{_more_than_judge(folder)}"
            if partial and not self.own.run.settings.accept:
                self.note += (
                    "\nit left benchmarks out: --benchmark-compare takes the newest whole run, and "
                    "this one only where there is none, or if you name it: "
                    f"--benchmark-compare={path.stem[:4]}"
                )


def _more_than_judge(folder: Path) -> str:
    """What to do about a history that has more runs than are kept."""
    runs = len(history.run_paths(folder))
    if runs <= history.KEPT_RUNS:
        return ""
    return f"; {runs} runs are stored there: `sdopt baseline prune` shows which of them judge"


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Let the machine say what its runs are filed under, which for a GPU nothing else says."""
    machine_info["sdopt"] = config.stash[SESSION].run.hardware.key


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Give every benchmark its level's measurements, and the run its identity."""
    session = config.stash[SESSION]
    output_json["sdopt"] = {**session.block(), "partial": left_benchmarks_out(config)}
    for entry in output_json["benchmarks"]:
        level = session.run.levels[entry["params"]["level"]]
        measured = {k: v for k, v in session.measured[level.name].items() if k != "latency_ms"}
        entry["extra_info"] = {**session.run.identity(level), **measured}
        entry["params"] = {"level": level.name}
