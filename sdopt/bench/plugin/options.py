"""The command-line options of the suite, and what they come to."""

from __future__ import annotations

import os
import shlex
from typing import Any

import pytest

from sdopt.bench.judge.known import RUN
from sdopt.bench.own.ladder import Ladder
from sdopt.bench.plugin.refusals import (
    a_name,
    a_path,
    refuse_empty_values,
    refuse_other_measurements,
    unfit,
)
from sdopt.bench.session import Settings
from sdopt.bench.stored.history import kept_folder
from sdopt.errors import SdoptError

DEFAULT_STORAGE = "file://./.benchmarks"


def add_options(parser: pytest.Parser) -> None:
    """The options of the suite."""
    group = parser.getgroup("sdopt", "optimization levels of Stable Diffusion 1.5")
    group.addoption(
        "--sdopt-source",
        type=a_name,
        default=os.environ.get("SDOPT_SOURCE", "auto"),
        metavar="NAME",
        help="weights: auto, embedded, sd15-random, a diffusers folder, a .safetensors file or a "
        "repository of the Hugging Face hub (default: $SDOPT_SOURCE, else auto)",
    )
    group.addoption(
        "--sdopt-prompts",
        type=a_path,
        metavar="FILE",
        help="JSON lines of name, prompt, negative_prompt, seed (default: the built-in prompts)",
    )
    group.addoption(
        "--sdopt-baselines",
        type=a_path,
        metavar="DIR",
        help="folder of histories and images (default: baselines/ below the root folder)",
    )
    group.addoption(
        "--sdopt-accept",
        action="store_true",
        help="store this run's images, latents and counts of work as the new baseline, and let a "
        "stored run start a new history (default: compare with the stored ones)",
    )
    group.addoption(
        "--sdopt-ab",
        type=a_name,
        metavar="BASE",
        help="compare the selected levels with that git revision instead, in pairs of fresh "
        "processes that take turns (default: off)",
    )
    group.addoption(
        "--sdopt-selftest",
        action="store_true",
        help="put faults into the suite and see whether it catches them (default: off)",
    )
    group.addoption(
        "--sdopt-compile-cache",
        type=a_path,
        metavar="FILE",
        help="take compiled code from this file, and renew it if the run passes; it runs as code, "
        "so trust it as code (default: the compilers' own caches)",
    )


def settings_of(config: pytest.Config) -> Settings:
    """What the options ask for. Raises UsageError for those that do not go together."""
    option = config.option
    refuse_empty_values(option)
    refuse_other_measurements(option)
    if option.benchmark_compare_fail:
        raise pytest.UsageError(
            "--benchmark-compare-fail cannot see memory or images and passes when a benchmark "
            "is missing; drop it: with --benchmark-compare sdopt judges every level itself"
        )
    if option.benchmark_storage != DEFAULT_STORAGE:
        raise pytest.UsageError(
            f"--benchmark-storage {option.benchmark_storage}: histories are kept per hardware "
            "and source; choose their folder with --sdopt-baselines DIR"
        )
    compare = option.benchmark_compare or None
    _refuse_combinations(option)
    root = option.sdopt_baselines
    stores = option.sdopt_accept or option.benchmark_save or option.benchmark_autosave
    if root and not root.is_dir() and not stores:
        raise pytest.UsageError(
            f"--sdopt-baselines {root}: there is no such folder; --sdopt-accept and "
            "--benchmark-autosave make it and store this run in it"
        )
    return Settings(
        source=option.sdopt_source,
        prompts=option.sdopt_prompts,
        baselines_root=root or config.rootpath / "baselines",
        accept=option.sdopt_accept,
        compare="" if compare is True else compare,
        unfit=unfit(option),
        command=_command(option),
        ladder=_own_ladder(config),
        keep=kept_folder(option.benchmark_json) if option.benchmark_json else None,
    )


def _own_ladder(config: pytest.Config) -> Ladder | None:
    """The levels of the project's conftest. UsageError for options that exclude them."""
    try:
        ladder: Ladder | None = config.hook.pytest_sdopt_ladder(config=config)
    except SdoptError as error:
        raise pytest.UsageError(f"pytest_sdopt_ladder of conftest.py: {error}") from error
    if ladder is None:
        return None
    option = config.option
    reasons = {
        "--sdopt-source (or $SDOPT_SOURCE)": option.sdopt_source != "auto",
        "--sdopt-ab": option.sdopt_ab,
        "--sdopt-selftest": option.sdopt_selftest,
    }
    if wrong := [name for name, given in reasons.items() if given]:
        raise pytest.UsageError(
            f"{', '.join(wrong)}: that is for the levels of sdopt, and pytest_sdopt_ladder of "
            "conftest.py gives this project's own, which bring their weights; drop it"
        )
    return ladder


def _refuse_combinations(option: Any) -> None:
    """An A/B run and the self-test measure in ways of their own."""
    modes = [
        name
        for name, wanted in (
            ("--sdopt-ab", option.sdopt_ab),
            ("--sdopt-selftest", option.sdopt_selftest),
        )
        if wanted
    ]
    others = {
        "--benchmark-compare": option.benchmark_compare,
        "--benchmark-save": option.benchmark_save,
        "--benchmark-autosave": option.benchmark_autosave,
        "--benchmark-disable": option.benchmark_disable,
        "--sdopt-accept": option.sdopt_accept,
        "--sdopt-compile-cache": option.sdopt_compile_cache,
        "-n": getattr(option, "dist", "no") != "no",
    }
    wrong = [*modes[1:], *(name for name, wanted in others.items() if wanted)]
    if modes and wrong:
        raise pytest.UsageError(f"{modes[0]} cannot be combined with {', '.join(wrong)}; drop one")
    if option.sdopt_compile_cache and others["-n"]:
        raise pytest.UsageError("--sdopt-compile-cache cannot be combined with -n; drop one")


def _command(option: Any) -> str:
    """`pytest benchmarks/` with this run's choices of source, prompts and baselines."""
    choices = {
        "--sdopt-source": option.sdopt_source if option.sdopt_source != "auto" else None,
        "--sdopt-prompts": option.sdopt_prompts,
        "--sdopt-baselines": option.sdopt_baselines,
    }
    given = shlex.join(f"{name}={value}" for name, value in choices.items() if value)
    return f"{RUN} {given}" if given else RUN
