"""Which tests reached a verdict, and what they come to: exit code, JUnit and verdicts.json."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from _pytest.junitxml import xml_key

from sdopt.bench.judge.verdict import exit_code
from sdopt.bench.plugin import raised, unfinished
from sdopt.bench.plugin.keys import COMPARISON, REACHED, SESSION, STORING
from sdopt.bench.report.verdicts import write_verdicts
from sdopt.bench.session import Session
from sdopt.util.progress import Steps


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Remember which tests reached a verdict, and tell JUnit which."""
    if not _is_benchmark(item):
        yield
        return
    session = item.config.stash[SESSION]
    before = len(session.gate.verdicts)
    try:
        yield
    finally:
        reached = item.stash[REACHED] = session.gate.verdicts[before:]
        if reached:
            session.judged.append(item.nodeid)
        if any(not verdict.passed for verdict in reached):
            session.failed_by_verdict.append(item.nodeid)
        item.user_properties += [(f"sdopt {v.metric}", v.outcome.value) for v in reached]


def _is_benchmark(item: pytest.Item) -> bool:
    return "gate" in getattr(item, "fixturenames", ())


def _judges(item: pytest.Item) -> bool:
    return _is_benchmark(item) or getattr(item, "judges", False)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Benchmarks outside of benchmarks/ take the place of an earlier run's verdicts as well."""
    shows = unfinished.only_shows(session.config.option)
    if any(map(_judges, session.items)) and not shows:
        unfinished.mark(session.config)
        if not os.environ.get("PYTEST_XDIST_WORKER"):  # which shares them with others
            session.config.stash[SESSION].run.progress.tests = Steps(len(session.items))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Count what is done, for the time left."""
    result = yield
    item.config.stash[SESSION].run.progress.tests.done += 1
    return result


class Unjudged:
    """Collects the benchmarks, and the check of their number, that fail without a verdict."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.node_ids: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called for setup, call and teardown of every test."""
        by_verdict = report.when == "call" and report.nodeid in self.session.failed_by_verdict
        of_a_level = getattr(report, raised.OF_A_LEVEL, False)
        if report.failed and not by_verdict and not of_a_level:
            self.node_ids.append(report.nodeid)


UNJUDGED = pytest.StashKey[Unjudged]()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Turn the verdicts into the exit code, JUnit's property and verdicts.json."""
    config = session.config
    if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return
    if not _is_judging(session):
        if session.items and not unfinished.only_shows(config.option):
            unfinished.end_without_verdicts(config)
        return
    if os.environ.get("PYTEST_XDIST_WORKER"):
        return  # its controller does this for all
    own, unjudged = config.stash[SESSION], config.stash[UNJUDGED].node_ids
    # A broken file of limits or counts leaves no gate: each benchmark failed in its setup.
    code = exit_code(own.verdicts, broken=bool(unjudged or config.stash[STORING].reason))
    session.exitstatus = int(code)
    xml = config.stash.get(xml_key, None)
    if xml:
        xml.add_global_property("sdopt_outcome", code.name.lower())
    run = own.block()
    if COMPARISON in config.stash:
        comparison = config.stash[COMPARISON]
        run |= {
            "base": comparison.base,
            "pairs": comparison.samples(),
            "removed": comparison.removed,
        }
    write_verdicts(config.rootpath / unfinished.VERDICTS, own.verdicts, code, unjudged, run)


def _is_judging(session: pytest.Session) -> bool:
    """Whether the run is one of benchmarks, and runs them."""
    settings = session.config.stash[SESSION].run.settings
    # The controller of a distributed run has no items of its own.
    distributed = bool(settings.unfit and settings.compare is not None)
    judging = any(_judges(item) for item in session.items) or distributed
    return judging and not unfinished.only_shows(session.config.option)
