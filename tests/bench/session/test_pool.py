"""Pipelines are freed when their level is done, and what they generated is made once."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from sdopt.bench.measure import cuda_memory
from sdopt.bench.measure.timing import image_ms
from sdopt.bench.session import Session
from sdopt.errors import MemoryLeftError
from sdopt.levels import LEVELS
from sdopt.util.hardware import free_memory


@pytest.mark.parametrize("name", ["baseline", "tuned"])
def test_a_pipeline_is_freed_when_its_level_is_done(name: str, session: Session) -> None:
    with session.pool.warm(LEVELS[name]) as (pipeline, first):
        gone = [weakref.ref(pipeline), weakref.ref(pipeline.unet), weakref.ref(pipeline.vae)]
        assert (first.compile_cache, pipeline.level) == ("eager", LEVELS[name])
        del pipeline
    assert [ref() for ref in gone] == [None] * 3


@pytest.mark.slow
@pytest.mark.usefixtures("ladder")
def test_a_compiled_pipeline_is_freed_too(micro: Path, session: Session) -> None:
    with session.pool.warm(LEVELS["final"]) as (pipeline, first):
        gone = [weakref.ref(pipeline), weakref.ref(pipeline.unet), weakref.ref(pipeline.vae)]
        assert first.compile_cache == "shared"
        del pipeline
    assert [ref() for ref in gone] == [None] * 3


def test_a_kept_pipeline_is_one_for_all_until_the_pool_is_closed(session: Session) -> None:
    level = LEVELS["baseline"]
    pipeline = session.pool.keep(level)
    assert session.pool.keep(level) is pipeline
    unet = weakref.ref(pipeline.unet)
    session.pool.close()
    assert (unet(), vars(pipeline)) == (None, {})


def test_memory_is_measured_beside_no_other_pipeline(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It frees workspaces of cuBLAS, which the other one's graphs may use."""
    measured: list[int] = []
    warm: list[str] = []

    def allocated(device: torch.device) -> float:
        measured.append(len(warm))
        return 0.0

    monkeypatch.setattr(cuda_memory, "allocated_mib", allocated)
    with pytest.raises(RuntimeError), session.pool.warm(LEVELS["baseline"]):
        raise RuntimeError
    for _ in range(2):
        with session.pool.warm(LEVELS["baseline"]):
            warm.append("baseline")
            with session.pool.warm(LEVELS["tuned"]):
                pass
            warm.clear()
    assert measured == [0] * 5
    first, second = (session.pool.warm(LEVELS[name]) for name in ("baseline", "tuned"))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert measured == [0] * 6


def test_what_a_level_leaves_is_told_with_its_name(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [10.0]
    monkeypatch.setattr(cuda_memory, "allocated_mib", lambda device: held[0])
    with session.pool.warm(LEVELS["baseline"]):
        held[0] += 1.0
    told = r"\[tuned\] 1\.5 MiB stay allocated .* 1 MiB are allowed"
    with pytest.raises(MemoryLeftError, match=told), session.pool.warm(LEVELS["tuned"]):
        held[0] += 1.5
    with session.pool.warm(LEVELS["tuned"]):
        pass


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of a CUDA device's allocator."""
    found: list[str] = []
    clear = "_cuda_clearCublasWorkspaces"
    monkeypatch.setattr(torch._C, clear, lambda: found.append("clear workspaces"), raising=False)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: found.append("empty cache"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 << 20)
    return found


def test_workspaces_of_cublas_do_not_count_as_left(done: list[str]) -> None:
    assert cuda_memory.allocated_mib(torch.device("cuda")) == 3.0
    assert done == ["clear workspaces"]


def test_graphs_of_others_keep_their_workspaces_when_memory_is_given_back(done: list[str]) -> None:
    free_memory(torch.device("cuda"))
    assert done == ["empty cache"]


def test_images_are_generated_once(session: Session) -> None:
    level = LEVELS["baseline"]
    with session.pool.warm(level) as (pipeline, _):
        made = session.pool.generated(level, pipeline)
    assert list(made.images) == ["astronaut", "castle"]
    assert {image.shape for image in made.images.values()} == {(64, 64, 3)}
    assert session.pool.generated(level, pipeline) is made


def test_the_references_images_are_generated_if_this_run_has_none(session: Session) -> None:
    assert session.pool.reference(LEVELS["baseline"]) is None
    made = session.pool.reference(LEVELS["tuned"])
    assert made is not None
    with session.pool.warm(LEVELS["baseline"]) as (pipeline, _):
        assert session.pool.generated(LEVELS["baseline"], pipeline) is made
    assert np.isfinite([*made.images.values()]).all()


def test_a_carried_fault_stays_until_the_level_is_done(session: Session) -> None:
    level, first = LEVELS["baseline"], session.run.workload.requests[0]
    with session.pool.warm(level) as (pipeline, _):
        healthy_ms = image_ms(pipeline, first)
    session.pool.fault = "host:20"
    with session.pool.warm(level) as (pipeline, _):
        gone = weakref.ref(pipeline.unet)
        assert image_ms(pipeline, first) > 5 * healthy_ms
    assert gone() is None
