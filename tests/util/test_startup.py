"""A fresh process is ready soon: what an image needs is imported, and nothing else."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdopt.engine import prepare
from sdopt.engine.prepare import first_uses, prepared, used_gpu
from sdopt.errors import UnknownNameError
from sdopt.levels import BASELINE, LEVELS, Level
from sdopt.util.startup import collector_paused

TURBO = LEVELS["turbo"]
NEEDLESS = (
    "matplotlib",
    "pytest",
    "skimage",
    "sklearn",
    "sdopt.bench.stored.baselines",
    "sdopt.bench.judge.gate",
    "sdopt.bench.measure",
    "sdopt.bench.plugin",
    "sdopt.bench.report",
    "sdopt.bench.session",
    "sdopt.tuning",
    "torch._inductor.compile_fx",
    "transformers.models.bert",
)
"""What no image of the engine needs. diffusers and transformers import the rest themselves."""


@pytest.fixture
def collecting() -> Iterator[None]:
    was, had_frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.enable()
    gc.unfreeze()
    yield
    if had_frozen:
        gc.freeze()
    if not was:
        gc.disable()


def test_an_image_imports_nothing_needless() -> None:
    code = (
        "import sdopt, sys; p = sdopt.load_pipeline('turbo', source='embedded', device='cpu');"
        "p('a red star', num_inference_steps=1, height=64, width=64); print(*sys.modules)"
    )
    answer = subprocess.run(
        (sys.executable, "-c", code),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(answer.stdout.split()) & set(NEEDLESS) == set()


def test_an_unknown_level_is_refused_before_the_imports() -> None:
    code = (
        "import sdopt, sys\ntry:\n    sdopt.load_pipeline('fastest')\n"
        "except ValueError as error:\n    print(type(error).__name__, 'torch' in sys.modules)"
    )
    answer = subprocess.run(
        (sys.executable, "-c", code),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == [UnknownNameError.__name__, "False"]


@pytest.mark.usefixtures("collecting")
def test_the_collector_rests_inside_and_works_afterwards() -> None:
    young = gc.get_count()[0]
    with collector_paused():
        assert not gc.isenabled()
        kept = [[] for _ in range(10_000 + young)]  # type: ignore[var-annotated]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    assert any(one is kept for one in gc.get_objects(generation=2))


@pytest.mark.usefixtures("collecting")
def test_the_collector_works_after_a_failure() -> None:
    with pytest.raises(ValueError, match="inside"), collector_paused():
        raise ValueError("inside")
    assert gc.isenabled()


@pytest.mark.usefixtures("collecting")
def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    with collector_paused():
        pass
    assert not gc.isenabled()


def test_what_was_frozen_stays_frozen() -> None:
    code = (
        "import gc; gc.freeze(); n = gc.get_freeze_count()\n"
        "from sdopt.util.startup import collector_paused\n"
        "with collector_paused():\n    pass\nprint(n, gc.get_freeze_count())"
    )
    answer = subprocess.run(
        (sys.executable, "-c", code),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = map(int, answer.stdout.split())
    assert before > 0
    assert abs(after - before) < before / 10  # some of them may have been freed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_first_uses_run_anywhere(dtype: torch.dtype) -> None:
    before = torch.get_rng_state()
    first_uses(torch.device("cpu"), dtype)
    assert torch.equal(torch.get_rng_state(), before)


dtypes: list[torch.dtype] = []
"""What was prepared for."""


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine with a GPU, as far as this module asks; the threads that prepared it."""
    names: list[str] = []
    dtypes.clear()

    def note(device: torch.device, dtype: torch.dtype) -> None:
        names.append(threading.current_thread().name)
        dtypes.append(dtype)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(prepare, "_tried", note)
    return names


def test_a_thread_prepares_and_is_waited_for(used: list[str]) -> None:
    with prepared(TURBO, None):
        pass
    assert used == ["sdopt-prepare"]
    with prepared(TURBO, None, "bfloat16"):
        pass
    assert dtypes == [torch.float16, torch.bfloat16]
    assert "sdopt-prepare" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    ("level", "device"), [(BASELINE, None), (TURBO, "cpu"), (replace(BASELINE, steps=2), "cuda")]
)
def test_nothing_is_prepared_without_need(
    level: Level, device: str | None, used: list[str]
) -> None:
    with prepared(level, device):
        pass
    assert used == []


def test_the_gpu_is_the_one_that_will_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert used_gpu("cuda") is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert used_gpu(None) == torch.device("cuda", 1)
    assert used_gpu("cuda:3") == torch.device("cuda", 3)
    assert used_gpu("cpu") is None


def test_an_error_is_left_to_the_first_image(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[torch.device] = []

    def fail(device: torch.device, dtype: torch.dtype) -> None:
        tried.append(device)
        raise RuntimeError("no such library")

    monkeypatch.setattr(prepare, "first_uses", fail)
    prepare._tried(torch.device("cpu"), torch.float32)
    assert tried == [torch.device("cpu")]
