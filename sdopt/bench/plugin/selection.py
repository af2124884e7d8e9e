"""What a run is made of: benchmarks, comparisons or faults, and the check that none is missing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sdopt.bench.plugin import ab, unfinished
from sdopt.bench.plugin.keys import BENCH, COMPARISON, DESELECTED, SESSION
from sdopt.errors import UnknownNameError
from sdopt.levels import Level


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> Iterator[None]:
    """Under --benchmark-compare, end with a check that nothing stored was left unjudged.

    What -k and the like take away while this hook waits was left out on request. Under
    --sdopt-selftest they pick from the faults, under --sdopt-ab from the benchmarks.
    """
    own = config.stash[SESSION]
    if items and config.option.sdopt_selftest:
        items[:] = _faults(session, config)
    collected = {item.nodeid for item in items}
    yield
    if collected and not items and not config.option.sdopt_selftest:
        _check_level(config.option.keyword, own.run.levels)
    if items and (config.option.sdopt_ab or config.option.sdopt_selftest):
        config.stash[DESELECTED] = ()
        if config.option.sdopt_ab:
            items[:], config.stash[COMPARISON] = ab.paired_items(
                session, items, own, config.option.sdopt_ab
            )
        return
    config.stash[DESELECTED] = collected - {item.nodeid for item in items}
    nothing_selected = collected and not items  # then pytest's own exit status 5 has to stand
    if own.run.settings.compare is not None and not nothing_selected:
        items.append(
            CompletenessCheck.from_parent(session, name="every stored benchmark is judged")
        )


def _check_level(keyword: str, levels: Mapping[str, Level]) -> None:
    """Raise UsageError for a -k that selected nothing and names a level that does not exist."""
    for name in re.findall(r"\[([^\[\]]*)\]", keyword or ""):
        if name not in levels:
            raise pytest.UsageError(str(UnknownNameError("level", name, levels)))


def _faults(session: pytest.Session, config: pytest.Config) -> list[pytest.Item]:
    from sdopt.bench.plugin import selftest

    bench = selftest.Bench(config.stash[SESSION], config.rootpath / unfinished.BENCHMARKS)
    config.add_cleanup(bench.close)
    config.stash[BENCH] = bench
    return selftest.fault_items(session, bench)


class CompletenessCheck(pytest.Item):
    """Fails if a benchmark of the stored run was removed, renamed, skipped or not run."""

    judges = True

    def runtest(self) -> None:
        """Compare the tests that reached a verdict with those of the stored run."""
        session = self.config.stash[SESSION]
        if session.gate.refusal:
            raise IncompleteRun(session.gate.refusal)
        missing = session.unjudged(self.config.stash[DESELECTED], _scopes(self.config))
        if missing:
            raise IncompleteRun(
                f"{len(missing)} tests of the stored run {session.gate.history} reached no verdict "
                f"in this run: {', '.join(missing)}\n  next: put them back, or store a run without "
                f"them: {session.run.settings.command} --benchmark-autosave"
            )

    def repr_failure(self, excinfo: Any, style: Any = None) -> str:
        """The message alone; a traceback into this file would tell nothing."""
        if isinstance(excinfo.value, IncompleteRun):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo, style))

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where pytest says that this check stands."""
        return self.config.rootpath, None, self.name


class IncompleteRun(Exception):
    """A run that left something unjudged."""


def left_benchmarks_out(config: pytest.Config) -> bool:
    """Whether this run was asked for less than all of benchmarks/."""
    whole = {".", unfinished.BENCHMARKS} & set(_scopes(config))
    return bool(not whole or config.stash[DESELECTED] or config.option.ignore)


def _scopes(config: pytest.Config) -> list[str]:
    """What the command line asks for, as prefixes of node ids."""
    scopes = []
    for argument in config.args:
        path, separator, test = argument.partition("::")
        absolute = (config.invocation_params.dir / path).resolve()
        inside = os.path.relpath(absolute, config.rootpath).replace(os.sep, "/")
        scopes.append(inside + separator + test)
    return scopes
