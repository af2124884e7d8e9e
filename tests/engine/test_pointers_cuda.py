"""On a GPU that has descriptors: kernels that read through pointers give the same, each time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sdopt.engine import cards
from sdopt.engine.tables import tuned
from sdopt.levels import LEVELS
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.workload import EMBEDDED_REQUESTS, generate
from sdopt.tuning import chosen
from sdopt.tuning.jobs import job_of_key
from sdopt.tuning.repeats import prove
from sdopt.util.hardware import POINTERS
from sdopt.weights.sources import resolve

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: its kernels")
REPEATS = 40
KEYS = [key for key in tuned() if not key.startswith("attention")]
LIMIT = 0.02
"""Of 1, the worst pixel: other sums in another order, through ten steps."""


@pytest.mark.parametrize("key", KEYS)
def test_products_are_right_and_the_same_each_time(key: str) -> None:
    card = cards.card_of(torch.device("cuda")).through_pointers()
    job = job_of_key(key)
    proof = prove(job, chosen.ruled(job, card), torch.device("cuda"), REPEATS)
    assert proof.passed, str(proof)


def built(level: str) -> LevelPipeline:
    return build(resolve("embedded"), replace(LEVELS[level], steps=10), torch.device("cuda"))


@pytest.mark.parametrize("level", ["fused", "hoisted", "express", "turbo"])
def test_images_are_those_through_descriptors(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    request = EMBEDDED_REQUESTS[0]
    wanted = np.asarray(generate(built(level), request))
    monkeypatch.setenv(POINTERS, "1")
    pipeline = built(level)
    assert cards.card_of(pipeline.device).pointers
    first, *others = (np.asarray(generate(pipeline, request)) for _ in range(6))
    assert all(np.array_equal(first, other) for other in others)
    difference: Any = np.abs(first - wanted)
    assert 0 < difference.max() < LIMIT
