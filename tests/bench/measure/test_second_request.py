"""A second request is generated as if it were the first, or the proof says what was kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sdopt.bench.measure.second_request import kept_state, second_generation, varies_size
from sdopt.levels import BASELINE, FINAL, TURBO, Level
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.workload import Request
from sdopt.weights.sources import Source

PLAIN = replace(BASELINE, steps=3)


@pytest.fixture(scope="module")
def plain(micro_source: Source) -> LevelPipeline:
    return build(micro_source, PLAIN)


@pytest.mark.parametrize(
    "level", [PLAIN, replace(TURBO, steps=6, cfg_cutoff=0.4)], ids=lambda level: level.name
)
def test_a_healthy_level_keeps_nothing(
    level: Level, micro_source: Source, micro_request: Request
) -> None:
    pipeline = build(micro_source, level)
    assert kept_state(pipeline, [micro_request], lambda: build(micro_source, level)) == ()


def test_the_second_request_differs_in_everything(
    plain: LevelPipeline, micro_request: Request
) -> None:
    second = second_generation(plain, [micro_request], size=True)
    for name in ("prompt", "negative_prompt", "seed"):
        assert getattr(second.request, name) != getattr(micro_request, name)
    assert second.settings["num_inference_steps"] != plain.level.steps
    assert second.settings["guidance_scale"] != plain.source.guidance_scale
    assert second.settings["width"] != second.settings["height"] == plain.source.size_px


def test_compiled_levels_vary_the_size_where_that_is_cheap(plain: LevelPipeline) -> None:
    assert varies_size(plain)
    compiled: Any = type("Compiled", (), {"level": FINAL, "device": plain.device})
    assert not varies_size(compiled)


def test_a_size_that_is_kept_is_told(
    plain: LevelPipeline, micro_request: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = LevelPipeline.__call__

    def at_first_size(self: LevelPipeline, *args: Any, **kwargs: Any) -> Any:
        return call(self, *args, **{**kwargs, "width": None, "height": None})

    monkeypatch.setattr(LevelPipeline, "__call__", at_first_size)
    kept = kept_state(plain, [micro_request])
    assert "second request: its size was not used" in kept
    assert any("its size is (64, 64)" in sentence for sentence in kept)


def test_what_depends_on_the_first_request_ever_is_told_by_a_fresh_pipeline(
    plain: LevelPipeline, micro_source: Source, micro_request: Request
) -> None:
    """The negative prompt's embedding is kept beside the second's: all single changes show."""

    def fresh() -> LevelPipeline:
        other = build(micro_source, PLAIN)
        other.vae.register_to_config(scaling_factor=0.9 * other.vae.config.scaling_factor)
        return other

    (sentence,) = kept_state(plain, [micro_request], fresh)
    assert "on a fresh pipeline its image differs" in sentence
