"""Fixtures of the heavier tests: a source that loads in moments, and the whole ladder on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from frozen import freeze_imported

from sdopt.levels import LEVELS
from sdopt.pipelines.workload import Request
from sdopt.util.places import TILES
from sdopt.weights.sources import Source, resolve

if TYPE_CHECKING:
    from micro import Rung

FAST = (
    "util",
    "miniature",
    "weights",
    "bench/metrics",
    "bench/judge",
    "bench/stored",
    "bench/report",
)
"""Folders of `pytest -m fast tests/`, beside the files at the top: what needs no pipeline.

The others are not even collected then: their imports would take a third of its time.
"""
NOT_FAST = ("test_hub.py", "test_startup.py", "test_embedded_model.py")
HERE = Path(__file__).parent
TREE = str(HERE.parent)
if TREE not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    # Child processes start elsewhere, and studies/ is not installed.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (TREE, os.environ.get("PYTHONPATH"))))
# Several processes share the cores: a thread that spins while it waits takes one from another.
# Read when torch is loaded, here and in child processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

CUDA_IS_AVAILABLE: Callable[[], bool] | None = None
"""PyTorch's own answer, once `micro` hides it."""
MICRO_REQUEST = Request(name="cat", prompt="a cat", negative_prompt="a dog", seed=1)


@pytest.fixture(scope="session", autouse=True)
def no_own_tiles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whoever has tuned this card gets the results of others; children of tests do, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TILES, str(tmp_path_factory.getbasetemp() / "own-tiles"))
        yield


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A diffusers folder with SD 1.5's block types, tiny, with seeded random weights.

    Where there is a GPU it is hidden from here on, so that these tests do the same everywhere.
    """
    import torch
    from micro import save_micro_source

    # More threads only get in each other's way on tensors this small. Set once: Dynamo guards on
    # the number of threads.
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("source") / "micro"
    save_micro_source(folder)
    global CUDA_IS_AVAILABLE
    CUDA_IS_AVAILABLE = torch.cuda.is_available
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield folder


@pytest.fixture(scope="module", autouse=True)
def seen_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """A file of tests for a GPU sees it, also after others for which `micro` has hidden it."""
    if "cuda" not in request.path.name:
        yield
        return
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", CUDA_IS_AVAILABLE or torch.cuda.is_available)
        yield


@pytest.fixture(scope="session")
def micro_source(micro: Path) -> Source:
    return resolve(str(micro))


@pytest.fixture(scope="session")
def micro_request() -> Request:
    return MICRO_REQUEST


@pytest.fixture(scope="session")
def ladder(micro_source: Source, micro_request: Request) -> dict[str, Rung]:
    """Every level, warm and watched. Compiling takes a minute or two: mark its tests `slow`."""
    from micro import climb

    return {name: climb(micro_source, level, micro_request) for name, level in LEVELS.items()}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m fast`, leave alone what holds no fast test."""
    if config.getoption("markexpr") != "fast":
        return None
    is_file = collection_path.suffix == ".py"
    place = (collection_path.parent if is_file else collection_path).relative_to(HERE).as_posix()
    if is_file:
        return None if place in (*FAST, ".") and collection_path.name not in NOT_FAST else True
    return None if place == "." or any(f"{one}/".startswith(f"{place}/") for one in FAST) else True


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the fast part, which is what to run after each change: it takes under a minute.

    What needs the ladder comes first: xdist's `worksteal` gives the beginning to one process, and
    others take from its end, so that one process alone builds the ladder.
    """
    for item in items:
        if is_fast(item):
            item.add_marker(pytest.mark.fast)
    items.sort(key=lambda item: "ladder" not in getattr(item, "fixturenames", ()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """After a test that imported much, the next ones need not walk through it."""
    yield
    freeze_imported()


def is_fast(item: pytest.Item) -> bool:
    """Whether a test lies in the fast part and neither builds a pipeline nor says it is slow."""
    if item.path.name in NOT_FAST or item.get_closest_marker("slow"):
        return False
    if "micro" in getattr(item, "fixturenames", ()):
        return False
    place = item.path.relative_to(HERE)
    folder = place.parent.as_posix()
    return folder in (*FAST, ".")
