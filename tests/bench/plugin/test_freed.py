"""What a run holds on the device ends with the level, also if its last test was the run's last."""

from __future__ import annotations

import gc

import pytest
import torch
from project import Project

from sdopt.bench.measure import cuda_memory


def held_latents(device: torch.device) -> float:
    """As many as there are, in the place of a device's memory: more than one is too much."""
    del device
    return float(sum(type(one) is torch.Tensor and one.dim() == 4 for one in gc.get_objects()))


@pytest.mark.parametrize("last", ["test_effect", "test_work"])
def test_the_last_test_of_a_run_leaves_nothing(
    project: Project, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_memory, "allocated_mib", held_latents)
    result = project.run("--sdopt-accept", tests=f"benchmarks/test_work.py::{last}")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == 1
    assert "errors" not in outcomes
