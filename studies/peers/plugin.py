"""The fixture that measures peers, and their table at the end; nothing here is judged."""

from __future__ import annotations

from typing import Any

import pytest

from sdopt.bench.session import RunContext
from studies.peers.contest import Contest
from studies.peers.table import peers_table

FOLDER = ".sdopt-peers"
CONTEST = pytest.StashKey[Contest]()


@pytest.fixture(scope="session")
def contest(run: RunContext, pytestconfig: pytest.Config) -> Contest:
    """The peers' processes and what they measured; kept below the root folder, by source."""
    folder = pytestconfig.rootpath / FOLDER / run.baseline_set
    return pytestconfig.stash.setdefault(CONTEST, Contest(run=run, folder=folder))


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The peers' table, if this run measured any; rows of earlier runs on this machine stay."""
    found = config.stash.get(CONTEST, None)
    if found is None or not found.measured:
        return
    terminalreporter.section(f"peers: {found.run.source.name} on {found.run.hardware}")
    terminalreporter.write_line("\n".join(peers_table(list(found.rows.rows.values()))))
    terminalreporter.write_line(
        "Speed-up and SSIM are over plain diffusers on the same sampler and steps.\n"
        f"kept in {found.rows.path}; python -m studies.peers shows it, --page writes it into a page"
    )
