"""A project of its own for each test: the benchmarks, run in this process on the micro source."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from frozen import freeze_imported
from project import BENCHMARKS, Project, scale_latency

from sdopt.levels import BASELINE, LEVELS, TUNED
from sdopt.pipelines import workload
from sdopt.pipelines.workload import Request
from sdopt.weights.sources import Source

PROMPTS = 2
STEPS = 3


@pytest.fixture(scope="session")
def imported(micro_source: Source, micro_request: Request) -> None:
    """Import here all that a run imports: pytester unloads what is first imported inside it."""
    import hypothesis  # noqa: F401 - its plugin does at the end of each run
    import skimage.metrics  # noqa: F401
    from micro import climb
    from PIL import Image, PngImagePlugin  # noqa: F401

    climb(micro_source, BASELINE, micro_request)
    freeze_imported()


@pytest.fixture
def project(
    pytester: pytest.Pytester, micro: Path, imported: None, monkeypatch: pytest.MonkeyPatch
) -> Project:
    """Fewer rounds, prompts and steps than a real run: these tests are of the machinery."""
    from sdopt.bench.measure import timing

    monkeypatch.delenv("SDOPT_SOURCE", raising=False)
    monkeypatch.setattr(timing, "ROUNDS", {"cpu": 2})
    monkeypatch.setattr(timing, "STAGE_ROUNDS", 1)
    monkeypatch.setattr(workload, "PHOTO_REQUESTS", workload.PHOTO_REQUESTS[:PROMPTS])
    for level in (BASELINE, TUNED):
        monkeypatch.setitem(LEVELS, level.name, replace(level, steps=STEPS))
    pytester.makeconftest('pytest_plugins = ["sdopt.bench.plugin", "studies.peers.plugin"]')
    # importlib: tests/ has modules of the same names as benchmarks/, imported in this process too.
    pytester.makeini(
        "[pytest]\naddopts = --strict-markers --strict-config --tb=short --import-mode=importlib"
    )
    shutil.copytree(BENCHMARKS, pytester.path / "benchmarks", ignore=ignored)
    return Project(pytester=pytester, source=micro)


def ignored(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "__pycache__"]


@pytest.fixture(scope="session")
def kept_baselines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept") / "baselines"


@pytest.fixture
def stored(project: Project, kept_baselines: Path) -> Project:
    """The project after one accepted and stored run of `baseline`.

    Its times are ten times what was measured, so that no noise fails a test that is to pass.
    """
    if not kept_baselines.exists():
        project.run("--sdopt-accept", "--benchmark-autosave").assert_outcomes(passed=7, skipped=3)
        project.edit_history(scale_latency(10))
        shutil.copytree(project.baselines, kept_baselines)
    else:
        shutil.copytree(kept_baselines, project.baselines)
    return project


@pytest.fixture(autouse=True)
def no_worker_of_xdist(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs in here are runs of their own, also where these tests are shared out by xdist."""
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)
