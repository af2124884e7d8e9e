"""Before anything is collected: the options, the session, and pytest-benchmark taken over."""

from __future__ import annotations

import os

import pytest

from sdopt.bench.plugin import compile_cache, hooks, raised, refusals, unfinished
from sdopt.bench.plugin.keys import SESSION, STORING
from sdopt.bench.plugin.options import add_options, settings_of
from sdopt.bench.plugin.outcome import UNJUDGED, Unjudged
from sdopt.bench.session import RunContext, Session
from sdopt.bench.session.header import header
from sdopt.errors import SdoptError
from sdopt.util.progress import Progress


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """`pytest_sdopt_ladder`, for projects with levels of their own."""
    pluginmanager.add_hookspecs(hooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the suite."""
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Take over what pytest-benchmark would judge or store, then resolve source and prompts."""
    unfinished.begin(config)
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("sdopt needs pytest-benchmark; drop -p no:benchmark")
    # A file of its own: while a test runs, pytest captures the process's standard error.
    stream = os.fdopen(os.dup(2), "w")
    config.add_cleanup(stream.close)
    run = RunContext(settings=settings_of(config), progress=Progress(stream))
    try:
        run.workload  # noqa: B018 - a bad source or prompts file stops the run here
    except SdoptError as error:
        raise pytest.UsageError(str(error)) from error
    session = Session.of(run)
    compile_cache.begin(config, session)
    config.stash[SESSION] = session
    config.stash[UNJUDGED] = Unjudged(session)
    config.pluginmanager.register(config.stash[UNJUDGED], "sdopt-unjudged")
    config.pluginmanager.register(raised.Raised(session), "sdopt-raised")
    config.stash[STORING] = refusals.NothingStored(config)
    config.pluginmanager.register(config.stash[STORING], "sdopt-nothing-stored")
    config.option.benchmark_save_data = True
    config.option.benchmark_quiet = not config.option.benchmark_verbose
    # An existing folder, so that pytest-benchmark makes none; `HistoryStorage` replaces it.
    config.option.benchmark_storage = f"file://{config.rootpath}"
    config.option.benchmark_compare = None


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Device, source and baseline set."""
    session = config.stash[SESSION]
    return [*header(session.run, session.store), *session.left_behind]
