"""A run's state is made once, freed when a level is done, and stored only when it is worth it."""

from __future__ import annotations

import io
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sdopt import workload
from sdopt.baselines import StoredRun
from sdopt.errors import SdoptError
from sdopt.levels import BASELINE, LEVELS, TUNED
from sdopt.report.progress import Progress
from sdopt.suite import Settings, Suite

STEPS = 2


@pytest.fixture
def suite(micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """Two prompts, two steps."""
    for level in (BASELINE, TUNED):
        monkeypatch.setitem(LEVELS, level.name, replace(level, steps=STEPS))
    monkeypatch.setattr(workload, "PHOTO_REQUESTS", workload.PHOTO_REQUESTS[:2])
    settings = Settings(source=str(micro), baselines_root=tmp_path)
    return Suite(settings=settings, progress=Progress(io.StringIO()))


def with_settings(suite: Suite, **changes: object) -> Suite:
    return Suite(settings=replace(suite.settings, **changes), progress=suite.progress)


@pytest.mark.parametrize("name", ["baseline", "tuned"])
def test_a_pipeline_is_freed_when_its_level_is_done(name: str, suite: Suite) -> None:
    with suite.warm_pipeline(LEVELS[name]) as (pipeline, first):
        gone = [weakref.ref(pipeline), weakref.ref(pipeline.unet), weakref.ref(pipeline.vae)]
        assert (first.compile_cache, pipeline.level) == ("eager", LEVELS[name])
        del pipeline
    assert [ref() for ref in gone] == [None] * 3


@pytest.mark.slow
@pytest.mark.usefixtures("ladder")
def test_a_compiled_pipeline_is_freed_too(micro: Path, suite: Suite) -> None:
    with suite.warm_pipeline(LEVELS["final"]) as (pipeline, first):
        gone = [weakref.ref(pipeline), weakref.ref(pipeline.unet), weakref.ref(pipeline.vae)]
        assert first.compile_cache == "shared"
        del pipeline
    assert [ref() for ref in gone] == [None] * 3


def test_pictures_are_made_once(suite: Suite) -> None:
    level = LEVELS["baseline"]
    with suite.warm_pipeline(level) as (pipeline, _):
        pictures = suite.pictures(level, pipeline)
    assert list(pictures) == ["astronaut", "castle"]
    assert {picture.shape for picture in pictures.values()} == {(64, 64, 3)}
    assert suite.pictures(level, pipeline) is pictures


def test_the_references_pictures_are_made_if_this_run_has_none(suite: Suite) -> None:
    assert suite.reference_pictures(LEVELS["baseline"]) is None
    made = suite.reference_pictures(LEVELS["tuned"])
    assert made is not None
    with suite.warm_pipeline(LEVELS["baseline"]) as (pipeline, _):
        expected = suite.pictures(LEVELS["baseline"], pipeline)
    for name, picture in expected.items():
        assert np.array_equal(made[name], (picture * 255).round().astype(np.uint8))


def test_a_photo_prompt_has_no_true_picture(suite: Suite) -> None:
    assert suite.true_pictures() == {}


def test_every_caption_of_the_embedded_source_has_its_true_picture(suite: Suite) -> None:
    embedded = with_settings(suite, source="embedded")
    true = embedded.true_pictures()
    assert list(true) == [request.name for request in embedded.workload.requests]
    assert {(picture.shape, str(picture.dtype)) for picture in true.values()} == {
        ((128, 128, 3), "uint8")
    }


def test_a_caption_without_a_whole_scene_has_none(suite: Suite, tmp_path: Path) -> None:
    prompts = tmp_path / "words.jsonl"
    prompts.write_text('{"name": "words", "prompt": "red star", "seed": 1}\n')
    assert with_settings(suite, source="embedded", prompts=prompts).true_pictures() == {}


def pictures(suite: Suite, value: float) -> dict[str, np.ndarray]:
    ramp = np.linspace(0, 1, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)
    return {request.name: ramp * value for request in suite.workload.requests}


def test_a_missing_picture_names_the_command(suite: Suite) -> None:
    stored, unusable = suite.stored_pictures(BASELINE, pictures(suite, 1.0))
    assert stored == {}
    assert list(unusable) == ["astronaut", "castle"]
    assert "no baseline image" in unusable["castle"]


@pytest.mark.parametrize(("value", "fault"), [(np.nan, "NaN"), (0.0, "a black picture")])
def test_a_worthless_picture_is_never_stored(value: float, fault: str, suite: Suite) -> None:
    accepting = with_settings(suite, accept=True)
    made = {**pictures(suite, 1.0), "castle": pictures(suite, value)["castle"]}
    with pytest.raises(SdoptError, match=rf"\[baseline\] nothing was stored: .*castle.*{fault}"):
        accepting.stored_pictures(BASELINE, made)
    assert list(suite.settings.baselines_root.rglob("*")) == []
    assert accepting.accepted == []


def test_what_is_stored_says_what_it_is_of(suite: Suite) -> None:
    identity = suite.identity(LEVELS["tuned"])
    assert identity["level_fields"]["channels_last"] is True
    assert (identity["source"], identity["steps"], identity["size_px"]) == ("micro", STEPS, 64)
    assert (identity["dtype"], identity["guidance_scale"]) == ("float32", 7.5)
    suite.judged.append("benchmarks/a.py::test")
    block = suite.history_block()
    assert (block["judged"], block["baseline_set"]) == (["benchmarks/a.py::test"], "micro")


def compared(suite: Suite, judged: tuple[str, ...] = (), **environment: str) -> Suite:
    """The suite as if it had found a stored run."""
    run = StoredRun(path=Path("0001_a.json"), metrics={}, judged=judged, environment=environment)
    suite.__dict__["stored"] = run
    return suite


def test_only_versions_that_differ_are_printed(suite: Suite) -> None:
    here = suite.environment
    assert suite.changed_environment() == []
    assert compared(suite, **here).changed_environment() == []
    changed = compared(suite, **{**here, "torch": "2.0.1"})
    assert changed.changed_environment() == [f"torch 2.0.1 -> {here['torch']}"]
    assert f"sdopt: changed since then: torch 2.0.1 -> {here['torch']}" in changed.header()


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("", ["b/a.py::t[x]", "b/a.py::t[y]"]),
        (".", ["b/a.py::t[x]", "b/a.py::t[y]"]),
        ("b", ["b/a.py::t[x]", "b/a.py::t[y]"]),
        ("b/a.py", ["b/a.py::t[x]", "b/a.py::t[y]"]),
        ("b/a.py::t", ["b/a.py::t[x]", "b/a.py::t[y]"]),
        ("b/a.py::t[y]", ["b/a.py::t[y]"]),
        ("b/a", []),
        ("a.py", []),
        ("c", []),
    ],
)
def test_unjudged_tests_are_those_within_what_was_asked_for(
    scope: str, expected: list[str], suite: Suite
) -> None:
    run = compared(suite, judged=("b/a.py::t[x]", "b/a.py::t[y]"))
    assert run.unjudged((), [scope]) == expected
    assert run.unjudged(expected, [scope]) == []
    run.judged.extend(expected)
    assert run.unjudged((), [scope]) == []


def test_nothing_is_unjudged_without_a_stored_run(suite: Suite) -> None:
    assert suite.unjudged((), ["."]) == []


def test_an_unfit_run_says_why_before_it_looks_for_a_stored_one(suite: Suite) -> None:
    unfit = with_settings(suite, compare="", unfit="because")
    assert unfit.stored == "because"
    assert unfit.gate.refusal == "because"
