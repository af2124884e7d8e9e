"""What a project's conftest.py may say to the suite."""

from __future__ import annotations

import pytest

from sdopt.bench.own.ladder import Ladder


@pytest.hookspec(firstresult=True)
def pytest_sdopt_ladder(config: pytest.Config) -> Ladder | None:
    """The project's own levels, which are then judged instead of those of this package."""
