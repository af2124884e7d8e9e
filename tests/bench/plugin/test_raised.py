"""A level whose pipeline raises is a failure of that level, told once."""

from __future__ import annotations

from typing import Any

import pytest
from project import Project

from sdopt.bench.judge.verdict import ExitCode
from sdopt.errors import OutOfMemoryError, SdoptError
from sdopt.pipelines.pipeline import APPLY, LevelPipeline

MARK = "the scheduler is on strike"


def raising(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_a_pipeline_that_raises_fails_its_level_with_one_traceback(
    stored: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import EulerAncestralDiscreteScheduler

    monkeypatch.setattr(EulerAncestralDiscreteScheduler, "step", raising(RuntimeError(MARK)))
    result = stored.run("--benchmark-compare", "--junitxml=report.xml")
    text = result.stdout.str()
    assert result.ret == ExitCode.REGRESSION
    assert text.count("Traceback") == 0
    assert len([line for line in text.splitlines() if line.startswith("E  ")]) == 1
    others = f"[[]baseline] was not judged: its pipeline raised RuntimeError: {MARK}"
    result.stdout.fnmatch_lines([others, "  the traceback stands at *test_latency[[]baseline]"])
    result.stdout.fnmatch_lines([f"*[[]baseline] pipeline: regression: *RuntimeError: {MARK}"])
    result.stdout.fnmatch_lines(["baseline*FAIL pipeline"])
    content = stored.verdicts()
    assert [(v["level"], v["metric"]) for v in content["verdicts"]] == [("baseline", "pipeline")]
    assert (content["outcome"], content["failed_without_verdict"]) == ("regression", [])
    report = (stored.path / "report.xml").read_text()
    assert report.count('name="sdopt pipeline" value="regression"') == 1


def test_a_pipeline_that_cannot_be_built_fails_its_level(
    stored: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = (raising(KeyError("no such option")), *APPLY)
    monkeypatch.setattr("sdopt.pipelines.pipeline.APPLY", broken)
    result = stored.run()
    assert result.ret == ExitCode.REGRESSION
    result.stdout.fnmatch_lines(["*pipeline: regression: its pipeline raised KeyError: *option*"])


@pytest.mark.parametrize("error", [OutOfMemoryError("too large"), SdoptError("not on this device")])
def test_what_the_level_cannot_help_is_no_failure_of_it(
    error: SdoptError, stored: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdopt.pipelines.pipeline.APPLY", (raising(error), *APPLY))
    result = stored.run()
    assert result.ret == ExitCode.FAULT
    assert stored.verdicts()["verdicts"] == []


def test_a_reference_that_raises_is_named_by_its_own_name(
    stored: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = LevelPipeline.__call__

    def fails_as_baseline(pipeline: LevelPipeline) -> None:
        if pipeline.level.name == "baseline":
            raise RuntimeError(MARK)

    monkeypatch.setattr(LevelPipeline, "_check_prompts", lambda p, *_: fails_as_baseline(p))
    assert LevelPipeline.__call__ is call
    result = stored.run(tests="benchmarks/test_quality.py", level="tuned")
    assert result.ret == ExitCode.REGRESSION
    assert ("baseline", "pipeline") in {
        (v["level"], v["metric"]) for v in stored.verdicts()["verdicts"]
    }


def test_an_image_without_a_unet_is_told_by_its_work(
    stored: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a pipeline gave back what it generated before."""
    import torch
    from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

    image = torch.rand((1, 64, 64, 3), generator=torch.Generator().manual_seed(0)).numpy()
    output = StableDiffusionPipelineOutput(images=image, nsfw_content_detected=None)
    monkeypatch.setattr(LevelPipeline, "__call__", lambda *_, **__: output)
    result = stored.run("--benchmark-compare")
    assert result.ret == ExitCode.REGRESSION
    assert "KeyError" not in result.stdout.str()
    metrics = {v["metric"]: v["outcome"] for v in stored.verdicts()["verdicts"]}
    assert (metrics["effect"], metrics["unet_evaluations"]) == ("regression", "regression")
