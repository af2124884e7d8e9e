"""Where the plugin keeps what a run of pytest shares."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import pytest

from sdopt.bench.judge.verdict import Verdict
from sdopt.bench.plugin import ab, refusals
from sdopt.bench.session import Session

if TYPE_CHECKING:
    from sdopt.bench.plugin.selftest import Bench  # noqa: F401 - for the annotation of BENCH

SESSION = pytest.StashKey[Session]()
STORING = pytest.StashKey[refusals.NothingStored]()
COMPARISON = pytest.StashKey[ab.Comparison]()
BENCH = pytest.StashKey["Bench"]()
REACHED = pytest.StashKey[list[Verdict]]()
"""On an item: the verdicts that its test reached."""
DESELECTED = pytest.StashKey[Collection[str]]()
