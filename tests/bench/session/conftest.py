"""A session of two prompts and two steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sessions import session_of

from sdopt.bench.session import Session
from sdopt.levels import BASELINE, LEVELS, TUNED
from sdopt.pipelines import workload

STEPS = 2


@pytest.fixture
def session(micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """Two prompts, two steps."""
    for level in (BASELINE, TUNED):
        monkeypatch.setitem(LEVELS, level.name, replace(level, steps=STEPS))
    monkeypatch.setattr(workload, "PHOTO_REQUESTS", workload.PHOTO_REQUESTS[:2])
    return session_of(micro, tmp_path)
