"""--sdopt-source, SDOPT_SOURCE and the header that says what a run works with."""

from __future__ import annotations

import pytest
from project import Project

from sdopt.util.hardware import hardware_of


def test_the_header_names_device_source_and_baselines(project: Project) -> None:
    result = project.run("--collect-only", "-q", "-q")
    assert result.ret == 0
    result = project.run("--collect-only")
    result.stdout.fnmatch_lines(
        [
            "sdopt: cpu *, * GiB, * cores, float32",
            "sdopt: without CUDA graphs run step by step, PyTorch's operations stand for *",
            f"sdopt: source micro (the folder {project.source}), 64 x 64, "
            "guidance scale 7.5, 2 prompts",
            f"sdopt: baselines {project.baselines}, set micro, hardware key cpu-*",
        ]
    )
    result.stdout.no_fnmatch_line("sdopt: comparing*")


def test_the_header_names_the_stored_run(stored: Project) -> None:
    result = stored.run("--collect-only", "--benchmark-compare")
    result.stdout.fnmatch_lines([f"sdopt: comparing with {stored.histories()[0]}"])
    result.stdout.no_fnmatch_line("sdopt: changed since then*")


def test_the_environment_variable_names_the_source(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDOPT_SOURCE", str(project.source))
    result = project.pytester.runpytest("benchmarks", "--collect-only")
    result.stdout.fnmatch_lines(["sdopt: source micro (the folder *"])
    result = project.pytester.runpytest("benchmarks", "--collect-only", "--sdopt-source=embedded")
    result.stdout.fnmatch_lines(["sdopt: source embedded (asked for by name)*"])


def test_without_one_the_source_is_auto_and_says_why(project: Project) -> None:
    result = project.pytester.runpytest("benchmarks", "--collect-only")
    result.stdout.fnmatch_lines(["sdopt: source embedded (auto: *), 128 x 128, *"])


def test_an_unknown_source_is_a_usage_error_with_the_choices(project: Project) -> None:
    result = project.run("--sdopt-source", "embeded")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: unknown source 'embeded' (did you mean 'embedded'?); "
            "choose from: auto, embedded, sd15-random; or a diffusers folder, *"
        ]
    )


def test_a_folder_without_a_model_is_a_usage_error(project: Project) -> None:
    result = project.run("--sdopt-source", str(project.path))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: * is not a diffusers folder: it has no model_index.json*"])


def test_baselines_may_stand_elsewhere(project: Project) -> None:
    elsewhere = project.path / "elsewhere"
    project.latency("--sdopt-baselines", str(elsewhere), "--benchmark-autosave")
    assert len(list(elsewhere.glob("history/*/micro/0001_*.json"))) == 1
    assert not project.baselines.exists()


def test_a_baselines_folder_that_does_not_exist_is_a_usage_error(project: Project) -> None:
    result = project.latency("--sdopt-baselines=nowhere")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --sdopt-baselines nowhere: there is no such folder; *"])


def test_histories_are_filed_by_hardware_and_source(stored: Project) -> None:
    import torch

    key = hardware_of(torch.device("cpu")).key
    assert stored.histories()[0].parent == stored.baselines / "history" / key / "micro"
