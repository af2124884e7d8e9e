"""Two images of one request are compared bit by bit, and any difference is a verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sessions import session_of

from sdopt.bench.faults.numerics import racing_stand_in
from sdopt.bench.judge import gate as gating
from sdopt.bench.judge.gate import Gate
from sdopt.bench.judge.verdict import Outcome
from sdopt.bench.measure.latents import ImageAndLatents, generate_with_latents
from sdopt.bench.measure.repeat import Repeat, repeat_of
from sdopt.levels import BASELINE, FINAL, HOISTED, LEVELS, TURBO, UNREPEATABLE, Level
from sdopt.pipelines import workload
from sdopt.pipelines.pipeline import build
from sdopt.pipelines.workload import Request
from sdopt.weights.sources import Source

EAGER_FINAL = replace(FINAL, compiled=False, steps=5, cfg_cutoff=0.4)
SHORT = [
    replace(BASELINE, steps=2),
    EAGER_FINAL,
    replace(HOISTED, steps=2),
    replace(TURBO, steps=5, cfg_cutoff=0.4),
]


def generated(value: float = 0.5) -> ImageAndLatents:
    return ImageAndLatents(
        image=np.full((8, 8, 3), value, np.float32), latents=np.full((4, 1, 1), value, np.float32)
    )


def test_the_same_bits_are_a_repeat() -> None:
    seen = repeat_of("cat", generated(), generated())
    assert seen.is_exact
    assert "every bit" in str(seen)
    assert Gate().repeat(BASELINE, seen).outcome is Outcome.PASS


def test_one_bit_is_none() -> None:
    other = generated()
    other.latents[0, 0, 0] = np.nextafter(np.float32(0.5), np.float32(1))
    seen = repeat_of("cat", generated(), other)
    assert (seen.latents_differing, seen.pixels_differing) == (1, 0)
    assert 0 < seen.latents_apart < 1e-7
    verdict = Gate().repeat(BASELINE, seen)
    assert (verdict.metric, verdict.outcome, verdict.measured) == ("repeat", Outcome.REGRESSION, 1)
    assert "1 values of latents differ" in verdict.reason
    assert verdict.next_step


def test_nan_is_no_way_around_it() -> None:
    broken, bits = generated(), generated()
    broken.image[0, 0, 0] = np.nan
    seen = repeat_of("cat", generated(), broken)
    assert (seen.pixels_differing, seen.pixels_apart) == (1, 1.0)
    bits.image[:] = np.nan
    assert repeat_of("cat", bits, bits).is_exact


def differing() -> Repeat:
    return repeat_of("cat", generated(0.5), generated(0.6))


def test_a_level_whose_library_forbids_it_is_recorded_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gating, "UNREPEATABLE", {"baseline": "atomics of the library"})
    verdict = Gate().repeat(BASELINE, differing())
    assert (verdict.outcome, verdict.passed) == (Outcome.RECORDED, True)
    assert "not judged: atomics of the library" in verdict.reason
    assert Gate().repeat(FINAL, differing()).outcome is Outcome.REGRESSION


def test_levels_that_need_not_repeat_exist_and_have_a_reason() -> None:
    assert set(UNREPEATABLE) <= set(LEVELS)
    assert all(UNREPEATABLE.values())


@pytest.mark.parametrize("level", SHORT, ids=lambda level: str(level.name))
def test_a_level_repeats_and_one_with_a_race_does_not(
    level: Level, micro_source: Source, micro_request: Request
) -> None:
    pipeline = build(micro_source, level)
    first = generate_with_latents(pipeline, micro_request)
    assert repeat_of("cat", first, generate_with_latents(pipeline, micro_request)).is_exact
    with racing_stand_in(pipeline):
        one, other = (
            generate_with_latents(pipeline, micro_request),
            generate_with_latents(pipeline, micro_request),
        )
    assert not repeat_of("cat", one, other).is_exact
    assert repeat_of("cat", first, generate_with_latents(pipeline, micro_request)).is_exact


def test_the_pool_generates_the_first_prompt_again_after_all_others(
    micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = replace(BASELINE, steps=2)
    monkeypatch.setattr(workload, "PHOTO_REQUESTS", workload.PHOTO_REQUESTS[:2])
    pool = session_of(micro, tmp_path).pool
    names: list[str] = []

    def noting(pipeline: object, request: Request) -> ImageAndLatents:
        names.append(request.name)
        return generated(len(names))

    monkeypatch.setattr("sdopt.bench.measure.generated.generate_with_latents", noting)
    with pool.warm(level) as (pipeline, _):
        repeat = pool.generated(level, pipeline).repeat
        assert pool.generated(level, pipeline).repeat is repeat
    assert names == ["astronaut", "castle", "astronaut"]
    assert repeat.latents_differing == 4
