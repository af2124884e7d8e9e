"""Process-wide switches hold while a level runs and are as before after it."""

from __future__ import annotations

import pytest
import torch

from sdopt.levels import BASELINE, FINAL, Level
from sdopt.optimizations.settings import process_settings


def settings() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark


@pytest.mark.parametrize("level", [BASELINE, FINAL], ids=lambda level: str(level.name))
@pytest.mark.parametrize("around", [BASELINE, FINAL], ids=lambda level: f"within-{level.name}")
def test_they_hold_within_and_are_restored(level: Level, around: Level) -> None:
    before = settings()
    with process_settings(around):
        outside = settings()
        with process_settings(level):
            assert settings() == (level.tf32,) * 3
        assert settings() == outside
    assert settings() == before


def test_they_are_restored_after_an_error() -> None:
    before = settings()
    with pytest.raises(MemoryError), process_settings(FINAL):
        raise MemoryError
    assert settings() == before
