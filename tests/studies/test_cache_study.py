"""The study of feature caching generates what stock does, and finds what it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdopt.levels import SWIFT
from sdopt.miniature import GUIDANCE_SCALE, MODEL_DIR
from sdopt.miniature.scenes import held_out_scenes
from studies.feature_caching import study as cache_study
from studies.feature_caching.cached_generation import CachedStudio, Memory, Plan
from studies.feature_caching.plans import (
    eliminate,
    families,
    fewer_steps,
    half_families,
    predicted_ms,
    variants,
)
from studies.miniature_quality.studio import Studio, to_images

CAPTIONS = [scene.caption() for scene in held_out_scenes(2)]
ALL_OF_FIVE = Plan(full=tuple(range(5)), steps=5)


@pytest.fixture(scope="module")
def studio() -> Studio:
    torch.set_num_threads(1)  # as conftest.py has it: more get in each other's way
    return Studio(MODEL_DIR, "cpu", 2)


def generate(studio: Studio, plan: Plan) -> Any:
    return CachedStudio(studio).generate(CAPTIONS, [0, 1], plan)


def test_all_full_is_the_stock_pipeline(studio: Studio) -> None:
    stock = studio.dpm(CAPTIONS, 5, GUIDANCE_SCALE, cutoff=True)
    assert np.array_equal(generate(studio, ALL_OF_FIVE), to_images(studio.tiny_vae, stock))


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_a_shallow_step_shows_in_the_image(studio: Studio, layers: int) -> None:
    generated = generate(studio, Plan(full=(0, 2, 4), steps=5, layers=layers))
    assert generated.shape == (2, 128, 128, 3)
    assert not np.array_equal(generated, generate(studio, ALL_OF_FIVE))


def test_memory_recalls_the_last_value_as_it_is() -> None:
    memory = Memory(slope=0)
    memory.store(900.0, torch.tensor([1.0, 2.0]))
    memory.store(800.0, torch.tensor([3.0, 5.0]))
    assert memory.recall(750.0, 2).tolist() == [3.0, 5.0]
    assert memory.recall(750.0, 1).tolist() == [5.0]


def test_memory_goes_on_along_a_line() -> None:
    memory = Memory(slope=1)
    memory.store(900.0, torch.tensor([1.0, 2.0]))
    assert memory.recall(850.0, 2).tolist() == [1.0, 2.0]
    memory.store(800.0, torch.tensor([3.0]))
    assert memory.recall(750.0, 1).tolist() == [3.5]


def test_predicted_times() -> None:
    everything = Plan(full=tuple(range(20)))
    assert predicted_ms(everything) == pytest.approx(9 * 4.6 + 11 * 2.9 + 3.5)
    first = Plan(full=(0,), layers=1)
    assert predicted_ms(first) == pytest.approx(4.6 + 8 * 0.61 + 11 * 0.44 + 3.5)
    assert predicted_ms(Plan(full=(0,), layers=0)) == pytest.approx(4.6 + 3.5)


def test_elimination_drops_what_is_missed_least() -> None:
    worth = {1: 5.0, 2: 1.0, 3: 9.0, 4: 2.0}
    asked = []

    def score(full: tuple[int, ...]) -> float:
        asked.append(full)
        return sum(worth[step] for step in full[1:])

    found = list(eliminate((0, 1, 2, 3, 4), score))
    assert found == [(0, 1, 3, 4), (0, 1, 3), (0, 3), (0,)]
    assert len(asked) < 4 + 3 + 2 + 1


def test_every_plan_starts_full_and_has_ascending_steps() -> None:
    named = {**families(), **fewer_steps(), **dict(variants("x", families()["every 3"]))}
    for plan in named.values():
        assert plan.full[0] == 0
        assert list(plan.full) == sorted(set(plan.full))
        assert plan.full[-1] < plan.steps


@pytest.mark.parametrize("steps", [20, 30])
def test_half_of_the_steps_are_full_by_every_such_plan(steps: int) -> None:
    for name, plan in half_families(steps).items():
        assert plan.full == tuple(sorted(set(plan.full))), name
        assert (plan.full[0], len(plan.full)) == (0, steps // 2), name
        assert plan.full[-1] < steps, name


def test_the_even_plan_is_the_level_s() -> None:
    assert half_families()["even, first to last"].full == SWIFT.full_steps(20)


def test_the_study_of_half_of_the_steps_searches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_study, "_ALL", Plan(full=(0, 1, 2), steps=3))
    named = {"even": Plan(full=(0, 2), steps=3)}
    monkeypatch.setattr(cache_study, "half_candidates", lambda: named)
    counts = ["--search-scenes=1", "--scenes=1", "--stressed=1"]
    cache_study.main([f"--out={tmp_path / 'study'}", "--half", *counts])
    assert "| even | 0 2 " in (tmp_path / "study.md").read_text()
    assert not (tmp_path / "study.search.json").exists()


def test_the_study_writes_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_study, "STEPS", 3)
    monkeypatch.setattr(cache_study, "_ALL", Plan(full=(0, 1, 2), steps=3))
    monkeypatch.setattr(cache_study, "candidates", lambda found: {"found": found[0]})
    counts = ["--search-scenes=1", "--scenes=1", "--stressed=1"]
    cache_study.main([f"--out={tmp_path / 'study'}", *counts])
    written = json.loads((tmp_path / "study.json").read_text())
    assert [row["name"] for row in written["rows"]] == ["found"]
    assert "| found | 0 " in (tmp_path / "study.md").read_text()
    assert len(json.loads((tmp_path / "study.search.json").read_text())) == 2
