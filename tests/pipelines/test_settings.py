"""Process-wide switches hold while a level runs and are as before after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sdopt.levels import BASELINE, FINAL, Level, get_level
from sdopt.pipelines.settings import process_settings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
THREADS = 2


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def settings() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark


@pytest.mark.parametrize("level", [BASELINE, FINAL], ids=lambda level: str(level.name))
@pytest.mark.parametrize("around", [BASELINE, FINAL], ids=lambda level: f"within-{level.name}")
def test_they_hold_within_and_are_restored(level: Level, around: Level) -> None:
    before = settings()
    with process_settings(around, CPU):
        outside = settings()
        with process_settings(level, CPU):
            assert settings() == (level.tf32,) * 3
        assert settings() == outside
    assert settings() == before


def test_cudnn_searches_for_no_level_of_the_engine() -> None:
    """It picks by times, so that bits would differ between processes."""
    with process_settings(FINAL, CPU), process_settings(get_level("hoisted"), CPU):
        assert settings() == (True, True, False)


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_they_are_restored_after_an_error(device: torch.device) -> None:
    before = settings()
    with pytest.raises(MemoryError), process_settings(FINAL, device):
        raise MemoryError
    assert settings() == before
    assert torch.get_num_threads() == THREADS


@pytest.mark.parametrize(("device", "within"), [(CPU, THREADS), (CUDA, 1)], ids=str)
def test_one_cpu_thread_is_left_beside_a_gpu_and_all_without(
    device: torch.device, within: int
) -> None:
    with process_settings(FINAL, device):
        assert torch.get_num_threads() == within
    assert torch.get_num_threads() == THREADS
