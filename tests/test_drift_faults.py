"""The committed drift limits pass an unchanged level and catch every fault that they have to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sdopt import baselines, measure
from sdopt.gate import Gate, Limits, Outcome, Verdict
from sdopt.levels import LEVELS, Level
from sdopt.pipeline import build
from sdopt.sources import Source, resolve
from sdopt.workload import generate, load_workload

ROOT = Path(__file__).parents[1] / "baselines"
SOURCE = resolve("embedded")
REQUESTS = load_workload(SOURCE).requests

# Eager, to spare the compilation; that compiled code draws the same is the control's assertion.
FINAL = replace(LEVELS["final"], compiled=False)

Picture = np.ndarray
Edit = Callable[[Picture], Picture]


def draw(level: Level, source: Source = SOURCE, seed_offset: int = 0) -> dict[str, Picture]:
    """The level's picture of every built-in prompt."""
    pipeline = build(source, level, torch.device("cpu"))
    return {
        request.name: generate(pipeline, replace(request, seed=request.seed + seed_offset))
        for request in REQUESTS
    }


def judge(level: Level, pictures: dict[str, Picture]) -> Verdict:
    """The drift verdict against the committed images and limits."""
    limits = baselines.load_limits(baselines.limits_path(ROOT, "embedded"))
    gate = Gate(limits={name: Limits(**kinds) for name, kinds in limits.items()})
    stored = {
        request.name: baselines.load_image(
            baselines.image_path(ROOT, "embedded", level.name, request.name),
            request,
            LEVELS[level.name],
            SOURCE.guidance_scale,
        )
        for request in REQUESTS
    }
    return gate.drift(level, measure.compare(pictures, stored))


@pytest.fixture(scope="module")
def final_pictures() -> dict[str, Picture]:
    return draw(FINAL)


def test_an_unchanged_level_passes(final_pictures: dict[str, Picture]) -> None:
    verdict = judge(FINAL, final_pictures)
    assert verdict.outcome is Outcome.PASS, verdict.message


@pytest.mark.parametrize(
    ("changed", "source", "seed_offset"),
    [
        pytest.param(FINAL, SOURCE, 1, id="wrong seed"),
        pytest.param(replace(FINAL, steps=19), SOURCE, 0, id="one step less"),
        pytest.param(
            FINAL,
            replace(SOURCE, guidance_scale=SOURCE.guidance_scale - 0.5),
            0,
            id="guidance scale 0.5 lower",
        ),
        pytest.param(replace(FINAL, decoder="full-vae"), SOURCE, 0, id="another level's decoder"),
        pytest.param(replace(FINAL, cfg_cutoff=0.5), SOURCE, 0, id="cutoff two steps late"),
    ],
)
def test_a_changed_computation_fails(changed: Level, source: Source, seed_offset: int) -> None:
    verdict = judge(FINAL, draw(changed, source, seed_offset))
    assert verdict.outcome is Outcome.REGRESSION, verdict.message


@pytest.mark.parametrize(
    ("edit", "outcome"),
    [
        pytest.param(np.zeros_like, Outcome.FAULT, id="black"),
        pytest.param(lambda p: np.full_like(p, np.nan), Outcome.FAULT, id="NaN"),
        pytest.param(lambda p: np.full_like(p, 0.5), Outcome.FAULT, id="constant"),
        pytest.param(lambda p: p[..., ::-1], Outcome.REGRESSION, id="swapped channels"),
    ],
)
def test_a_broken_picture_fails(
    edit: Edit, outcome: Outcome, final_pictures: dict[str, Picture]
) -> None:
    first = REQUESTS[0].name
    verdict = judge(FINAL, {**final_pictures, first: edit(final_pictures[first])})
    assert verdict.outcome is outcome, verdict.message
