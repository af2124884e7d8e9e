"""Processes that score beside a GPU: the same numbers, and no life of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import stub_evaluation as stub

from sdopt.bench.evaluation.checking import missing_blocks
from sdopt.bench.evaluation.parts import read_rows, read_scores
from sdopt.bench.evaluation.pixels import to_png
from sdopt.bench.evaluation.places import Folder
from sdopt.bench.evaluation.scorers import processes, see
from sdopt.bench.evaluation.work import Worker
from sdopt.errors import WorkerError
from sdopt.miniature.scenes import held_out_scenes, render

WAIT_S = 20
HOLDER = """
import os, sys
from sdopt.bench.evaluation.scorers import processes

if __name__ == "__main__":
    with processes(1) as by:
        import numpy as np

        by(np.zeros((16, 16, 3), np.uint8), None, None)
        print("ready", flush=True)
        sys.stdin.read()
"""


def test_processes_compute_what_this_one_computes_and_an_end_is_told() -> None:
    scenes = held_out_scenes(3)
    images = [render(scene, 64) for scene in scenes]
    references = [to_png(np.roll(image, 1, axis=0)) for image in images]
    here = [seen[:2] for seen in map(see, images, scenes, references)]
    assert here[0][1]["attributes_right"] == 1.0
    with processes(2) as by, ThreadPoolExecutor(2) as threads:
        there = list(threads.map(by, images, scenes, references))
        assert [seen[:2] for seen in there] == here
        for _, _, spent in there:
            assert 0 < spent.png_s + spent.score_s <= spent.cpu_s
        for child in psutil.Process().children(recursive=True):
            if "forkserver" in " ".join(child.cmdline()) and child.parent().pid != os.getpid():
                child.kill()
        with pytest.raises(WorkerError, match="goes on where it stopped"):
            list(map(by, images[:1] * 100, [None] * 100, [None] * 100))


def test_they_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "holder.py"
    script.write_text(HOLDER)
    holder = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    family = psutil.Process(holder.pid).children(recursive=True)
    assert family
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    until = time.monotonic() + WAIT_S
    while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_worker_beside_a_gpu_stores_what_one_on_a_cpu_stores(tmp_path: Path) -> None:
    evaluation = stub.of(6)
    made_with: dict[str, dict[str, str]] = {"hoisted": {}, "turbo": {}}
    for device in ("cuda", "cpu"):
        place = Folder(tmp_path / device)
        Worker(
            evaluation=evaluation,
            place=place,
            build=stub.images(),
            session="",
            process=0,
            device=device,
            threads=2,
            say=lambda line: None,
            progress=lambda: None,
            made_with=made_with,
        ).work(missing_blocks(place, evaluation, made_with), range(evaluation.blocks), 2)

    for name in ("parts/hoisted/00000001.parquet", "parts/turbo/00000000.parquet"):
        assert read_rows(Folder(tmp_path / "cuda"), name) == read_rows(
            Folder(tmp_path / "cpu"), name
        )
    beside, within = (
        read_scores(Folder(tmp_path / device), "parts/turbo/00000001.parquet").made
        for device in ("cuda", "cpu")
    )
    assert beside.scorers_cpu_s > 0 == within.scorers_cpu_s
    for made in (beside, within):
        assert min(made.cpu_s, made.png_s, made.score_s, made.write_s) > 0
