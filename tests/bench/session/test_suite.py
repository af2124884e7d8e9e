"""A run's state is made once, freed when a level is done, and stored only when it is worth it."""

from __future__ import annotations

import io
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdopt.bench.measure import Work
from sdopt.bench.metrics.work import ACCEPTED_COUNTS, WORK_DETAILS
from sdopt.bench.session.suite import Settings, Suite
from sdopt.bench.stored.baselines import load_work, work_path
from sdopt.bench.stored.history import StoredRun, save_run
from sdopt.bench.stored.soundness import statistics_of
from sdopt.errors import BrokenFileError, SdoptError
from sdopt.levels import BASELINE, LEVELS, TUNED
from sdopt.pipelines import workload
from sdopt.util.progress import Progress

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
    assert "no baseline image" in str(unusable["castle"])


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
    suite.__dict__["history"] = [run]
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
    assert unfit.history == "because"
    assert unfit.stored is None
    assert unfit.gate.refusal == "because"
    assert unfit.gate.refusal_hint == f"{unfit.gate.command} --benchmark-compare" + (
        "  # without that option"
    )


def measured(suite: Suite, latency_ms: float, **more: Any) -> dict[str, Any]:
    """A run of `baseline` and `tuned` as the plugin stores it; `more` goes into its block."""
    entries = [
        {
            "extra_info": {**suite.identity(LEVELS[name]), "host_syncs": 0},
            "stats": statistics_of([latency_ms / 1e3]),
        }
        for name in ("baseline", "tuned")
    ]
    return {
        "sdopt": {**suite.history_block(), **more},
        "benchmarks": entries,
        "machine_info": {},
        "commit_info": {"id": "0123456789abcdef0123456789abcdef01234567"},
    }


def test_without_a_comparison_there_is_no_history(suite: Suite) -> None:
    save_run(suite.history_folder, "a", measured(suite, 100.0))
    assert (suite.history, suite.stored) == (None, None)
    assert (suite.gate.comparing, suite.gate.stored, suite.gate.series) == (False, {}, {})
    assert not [line for line in suite.header() if "comparing" in line]


def test_a_comparison_without_a_stored_run_is_refused(suite: Suite) -> None:
    comparing = with_settings(suite, compare="")
    assert isinstance(comparing.history, str)
    assert comparing.stored is None
    assert comparing.gate.refusal == comparing.history
    assert comparing.gate.refusal_hint is None
    assert f"sdopt: comparing with nothing: {comparing.history}" in comparing.header()
    assert "--benchmark-autosave stores a first run" in comparing.header()[-1]


def test_the_gate_judges_by_all_stored_runs(suite: Suite) -> None:
    for latency_ms in (100.0, 110.0):
        newest = save_run(suite.history_folder, "a", measured(suite, latency_ms))
    comparing = with_settings(suite, compare="")
    gate = comparing.gate
    assert gate.series["tuned"]["latency_ms"] == [pytest.approx(100.0), pytest.approx(110.0)]
    assert gate.stored["tuned"]["latency_ms"] == pytest.approx(110.0)
    assert (gate.history, gate.commit, gate.redefined) == (str(newest), "0123456789ab", {})
    assert f"sdopt: comparing with {newest} and 1 earlier" in comparing.header()


def test_the_gate_judges_by_the_runs_since_the_baseline_was_accepted(suite: Suite) -> None:
    for latency_ms, accepted in ((100.0, False), (50.0, True), (51.0, False)):
        save_run(suite.history_folder, "a", measured(suite, latency_ms, accepted=accepted))
    gate = with_settings(suite, compare="").gate
    assert gate.series["tuned"]["latency_ms"] == [pytest.approx(50.0), pytest.approx(51.0)]


def test_a_run_named_by_number_is_judged_by_the_runs_up_to_it(suite: Suite) -> None:
    for latency_ms in (100.0, 110.0, 120.0):
        save_run(suite.history_folder, "a", measured(suite, latency_ms))
    gate = with_settings(suite, compare="2").gate
    assert gate.series["tuned"]["latency_ms"] == [pytest.approx(100.0), pytest.approx(110.0)]


def test_runs_of_another_definition_of_a_level_are_not_judged_by(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(suite.history_folder, "a", measured(suite, 100.0))
    monkeypatch.setitem(LEVELS, "tuned", replace(LEVELS["tuned"], steps=STEPS + 1))
    stale = with_settings(suite, compare="").gate
    assert stale.redefined == {"tuned": f"steps {STEPS} -> {STEPS + 1}"}
    save_run(suite.history_folder, "b", measured(suite, 200.0))
    gate = with_settings(suite, compare="").gate
    assert gate.redefined == {}
    assert gate.series["tuned"]["latency_ms"] == [pytest.approx(200.0)]
    assert gate.series["baseline"]["latency_ms"] == [pytest.approx(100.0), pytest.approx(200.0)]


def test_a_stored_level_that_left_the_ladder_is_not_redefined(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(suite.history_folder, "a", measured(suite, 100.0))
    monkeypatch.delitem(LEVELS, "tuned")
    assert with_settings(suite, compare="").gate.redefined == {}


def test_one_broken_earlier_run_refuses_the_comparison(suite: Suite) -> None:
    broken = save_run(suite.history_folder, "a", measured(suite, 100.0))
    save_run(suite.history_folder, "a", measured(suite, 100.0))
    broken.write_text("")
    gate = with_settings(suite, compare="").gate
    assert gate.refusal is not None
    assert str(broken) in gate.refusal


WORK = Work(
    unet_evaluations=3,
    tflop=0.5,
    recompiles=0,
    graph_breaks=0,
    calls={"unet": 3},
    tflop_by_module={"unet.mid_block": 0.25},
)


def test_counts_are_stored_when_they_are_accepted(suite: Suite) -> None:
    accepting = with_settings(suite, accept=True)
    assert accepting.gate.work(BASELINE, WORK).passed is False
    accepting.keep_work(BASELINE, WORK)
    path = work_path(suite.settings.baselines_root, "micro")
    expected = {name: getattr(WORK, name) for name in (*ACCEPTED_COUNTS, *WORK_DETAILS)}
    assert load_work(path) == {"baseline": expected}
    assert accepting.gate.work(BASELINE, WORK).passed
    later = with_settings(suite).gate
    assert (later.work_file, later.work_stored) == (str(path), {"baseline": expected})
    assert later.work(BASELINE, WORK).passed


def test_counts_are_not_stored_unless_they_are_accepted(suite: Suite) -> None:
    suite.keep_work(BASELINE, WORK)
    assert list(suite.settings.baselines_root.rglob("*")) == []


def test_broken_counts_are_named_before_anything_is_judged(suite: Suite) -> None:
    path = work_path(suite.settings.baselines_root, "micro")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(BrokenFileError, match="cannot be read"):
        suite.gate  # noqa: B018


def test_counts_of_the_miniature_are_those_of_every_dtype(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = with_settings(suite, source="embedded")
    monkeypatch.setattr(Suite, "dtype", "float16")
    assert embedded.baseline_set == "embedded-float16"
    root = suite.settings.baselines_root
    assert embedded.gate.work_file == str(work_path(root, "embedded"))
    assert embedded.gate.limits_file == str(root / "images" / "embedded-float16" / "limits.json")
