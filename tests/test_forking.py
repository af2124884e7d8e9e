"""Workers that are forked from one that has imported everything answer and end like others."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ab_repository import eventually, is_running

import sdopt
from sdopt.ab import Sides, Spec
from sdopt.ab.cleanup import janitor
from sdopt.ab.process import Worker
from sdopt.errors import WorkerError
from sdopt.selftest import forking, template

TREE = Path(sdopt.__file__).parents[1]


@pytest.fixture(scope="module")
def made(micro: Path) -> Iterator[tuple[Spec, forking.Template]]:
    """A template on the micro source."""
    spec = Spec(sides=Sides(base=TREE, head=TREE), source=str(micro), max_pairs=1)
    with pytest.MonkeyPatch.context() as patch, janitor() as keeper:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("OMP_NUM_THREADS", "1")
        with forking.template(spec, keeper) as one:
            yield spec, one
        eventually(lambda: not is_running(one.group))


def test_forked_workers_draw_and_are_processes_of_their_own(
    made: tuple[Spec, forking.Template],
) -> None:
    spec, one = made
    workers = [Worker(spec, side, one.start) for side in ("base", "head")]
    try:
        assert len({worker.group for worker in workers} | {one.group}) == 3
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


def test_a_forked_worker_that_dies_is_told(made: tuple[Spec, forking.Template]) -> None:
    spec, one = made
    worker = Worker(spec, "head", one.start)
    worker.kill()
    with pytest.raises(WorkerError, match=r"the head worker .* 'hello', ended"):
        worker.ask("hello")
    worker.end()


def test_waiting_for_one_that_lives_has_an_end(made: tuple[Spec, forking.Template]) -> None:
    spec, one = made
    worker = Worker(spec, "head", one.start)
    with pytest.raises(subprocess.TimeoutExpired):
        worker._process.wait(0.05)
    worker.end()


def test_a_template_that_cannot_import_says_so(tmp_path: Path) -> None:
    (tmp_path / "sdopt").mkdir()
    (tmp_path / "sdopt" / "__init__.py").write_text("raise ImportError('no such luck')")
    spec = Spec(sides=Sides(base=tmp_path, head=tmp_path), max_pairs=1)
    with (
        janitor() as keeper,
        pytest.raises(WorkerError, match="no such luck"),
        forking.template(spec, keeper),
    ):
        pass


def test_a_template_that_opened_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    template.refuse_used_devices()
    monkeypatch.setattr("os.path.realpath", lambda path: "/dev/nvidia0")
    with pytest.raises(RuntimeError, match="opened a GPU"):
        template.refuse_used_devices()
