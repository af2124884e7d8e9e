"""Workers that are forked from one that has imported everything answer and end like others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ab_repository import is_running

import sdopt
from sdopt.bench.ab import Sides, Spec
from sdopt.bench.ab.process import Start, Worker
from sdopt.errors import WorkerError
from studies.power import forking

TREE = Path(sdopt.__file__).parents[1]


@pytest.fixture(scope="module")
def made(micro: Path) -> Iterator[tuple[Spec, Start]]:
    """What starts workers of the micro source."""
    spec = Spec(sides=Sides(base=TREE, head=TREE), source=str(micro), max_pairs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield spec, forking.forking(spec)
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # or it would stay till the end


def test_forked_workers_generate_and_are_processes_of_their_own(made: tuple[Spec, Start]) -> None:
    spec, start = made
    workers = [Worker(spec, side, start) for side in ("base", "head")]
    try:
        assert len({os.getpgid(worker.group) for worker in workers} | {os.getpgid(0)}) == 3
        for worker in workers:
            assert worker.ask("hello")["device"] == "cpu"
        workers[0].ask("load", level="baseline")
        assert len(workers[0].ask("rounds", count=2)["ms"]) == 2
        workers[0].quit()
        assert not is_running(workers[0].group)
        assert workers[1].ask("hello")["device"] == "cpu"
    finally:
        for worker in workers:
            worker.end()
    assert not any(is_running(worker.group) for worker in workers)


def test_a_forked_worker_that_dies_is_told(made: tuple[Spec, Start]) -> None:
    spec, start = made
    worker = Worker(spec, "head", start)
    worker.kill()
    with pytest.raises(WorkerError, match=r"the head worker .* 'hello', ended \(status -9\)"):
        worker.ask("hello")
    worker.end()


def test_a_worker_of_another_tree_says_so(made: tuple[Spec, Start], tmp_path: Path) -> None:
    spec, start = made
    worker = Worker(replace(spec, sides=Sides(base=tmp_path, head=tmp_path)), "head", start)
    with pytest.raises(WorkerError, match=f"not from {tmp_path}"):
        worker.ask("hello")
    worker.end()


def test_waiting_for_one_that_lives_has_an_end(made: tuple[Spec, Start]) -> None:
    spec, start = made
    worker = Worker(spec, "head", start)
    with pytest.raises(subprocess.TimeoutExpired):
        worker._process.wait(0.05)
    worker.end()


def test_imports_that_fail_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no_such_luck.py").write_text("raise RuntimeError('CUDA has started')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(forking, "PRELOADED", "no_such_luck")
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # of the tests before
    spec = Spec(sides=Sides(base=TREE, head=TREE), max_pairs=1)
    with pytest.raises(WorkerError, match="imports for all others failed"):
        forking.forking(spec)
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("answer", "refused"), [(0, True), (100, True), (3, False)])
def test_a_template_in_which_cuda_has_started_is_refused(
    answer: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = SimpleNamespace(cuDeviceGetCount=lambda count: answer)
    monkeypatch.setattr("ctypes.CDLL", lambda name: driver)
    with pytest.raises(RuntimeError, match="started CUDA") if refused else nullcontext():
        forking.refuse_started_cuda()


def test_a_machine_without_a_driver_has_started_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", absent)
    assert not forking.cuda_has_started()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_drivers_own_answer() -> None:
    ask = "import torch; from studies.power.forking import cuda_has_started as started; "
    ask += "before = started(); torch.zeros(1, device='cuda'); print(before, started())"
    seen = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    words = (sys.executable, "-c", ask)
    said = subprocess.run(words, capture_output=True, text=True, check=True, env=seen)
    assert said.stdout.split() == ["False", "True"]
