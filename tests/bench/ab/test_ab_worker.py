"""The worker measures the tree that it is told to, by the protocol and nothing else."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ab_repository import commit_all, git, worktrees

import sdopt
from sdopt.bench.ab import Sides, Spec, checked_out, run_pairs, worker
from sdopt.bench.ab.result import WORKER
from sdopt.bench.judge.verdict import Outcome, Verdict
from sdopt.errors import WorkerError
from sdopt.util.progress import Progress

SMALL_PACKAGE = {
    "__init__.py": "",
    "levels.py": """
class Level:
    def as_dict(self): return {"name": "one", "steps": 3}
LEVELS = {"one": Level()}
""",
    "sources.py": "def resolve(name): return name",
    "workload.py": """
import os, sys
class Workload: requests = ("cat", "dog")
def load_workload(source, prompts): return Workload()
def generate(pipeline, request):
    print("a stray print")
    os.system("echo a stray child; cat")
    pipeline.generated.append(request)
    if len(pipeline.generated) > 4: raise RuntimeError("out of paint")
""",
    "pipeline.py": """
class Device: type = "cpu"
class Pipeline:
    def __init__(self): self.generated = []
def default_device(): return Device()
def build(source, level, device): return Pipeline()
""",
}


def small_tree(folder: Path) -> Path:
    """A tree whose package has the names that a worker uses, and no torch."""
    package = folder / "sdopt"
    package.mkdir(parents=True)
    for name, code in SMALL_PACKAGE.items():
        (package / name).write_text(code)
    return folder


def conversation(tree: Path, *commands: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """The answers of a worker in that tree and its log; its stdin ends after the commands."""
    done = subprocess.run(
        (sys.executable, str(WORKER), str(tree), "embedded", ""),
        input="".join(json.dumps(command) + "\n" for command in commands),
        capture_output=True,
        text=True,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_a_level_is_loaded_timed_and_left_and_the_end_of_stdin_is_the_end(tmp_path: Path) -> None:
    hello, loaded, rounds, memory = conversation(
        small_tree(tmp_path),
        {"do": "hello"},
        {"do": "load", "level": "one"},
        {"do": "rounds", "count": 2},
        {"do": "memory"},
    )[0]
    assert hello == {"levels": ["one"], "device": "cpu"}
    assert loaded["level"] == {"name": "one", "steps": 3}
    assert loaded["first_call_s"] > 0
    assert len(rounds["ms"]) == 2
    assert min(rounds["ms"]) > 0
    assert memory == {"peak_allocated_mib": None}


def test_prints_and_children_stay_out_of_the_protocol(tmp_path: Path) -> None:
    answers, log = conversation(
        small_tree(tmp_path), {"do": "hello"}, {"do": "load", "level": "one"}, {"do": "quit"}
    )
    assert [set(answer) for answer in answers] == [
        {"levels", "device"},
        {"level", "first_call_s"},
        set(),
    ]
    assert log.count("a stray print") == log.count("a stray child") == 2


def test_errors_are_answers_with_their_traceback_in_the_log(tmp_path: Path) -> None:
    answers, log = conversation(
        small_tree(tmp_path),
        {"do": "hello"},
        {"do": "load", "level": "ones"},
        {"do": "dance"},
        {"do": "load", "level": "one"},
        {"do": "rounds", "count": 3},
    )
    assert answers[1] == {"error": "ValueError: unknown level 'ones'; choose from: one"}
    assert "unknown command 'dance'; choose from: hello, load, identity" in answers[2]["error"]
    assert answers[4] == {"error": "RuntimeError: out of paint"}
    assert "Traceback" in log


def test_a_package_from_elsewhere_is_refused(tmp_path: Path) -> None:
    """Such as an editable installation, in a base from before the package existed."""
    elsewhere = small_tree(tmp_path / "elsewhere")
    tree = tmp_path / "tree"
    tree.mkdir()
    done = subprocess.run(
        (sys.executable, str(WORKER), str(tree), "embedded", ""),
        input='{"do": "hello"}\n',
        capture_output=True,
        text=True,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), str(elsewhere)])},
    )
    error = json.loads(done.stdout)["error"]
    assert re.search(rf"imported from {elsewhere}/\S+, not from {tree}", error)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """This package, committed with a baseline of 2 steps, and uncommitted with one of 3."""
    folder = tmp_path / "repository"
    package = Path(sdopt.__file__).parent
    unneeded = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(package, folder / "sdopt", ignore=unneeded)
    git(tmp_path, "init", "--quiet", str(folder))
    set_baseline_steps(folder, 2)
    commit_all(folder, "base")
    set_baseline_steps(folder, 3)
    return folder


def set_baseline_steps(folder: Path, steps: int) -> None:
    levels = folder / "sdopt" / "levels.py"
    changed = re.sub(r'(BASELINE = Level\(name="baseline", )(steps=\d+, )?', rf"\1steps={steps}, ",
                     levels.read_text())  # fmt: skip
    levels.write_text(changed)


def decide(level: str, metric: str, base: Any, head: Any) -> Verdict:
    return Verdict(level=level, metric=metric, outcome=Outcome.PASS, reason="")


def test_real_workers_import_and_measure_their_own_trees(
    repository: Path, micro: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    progress = Progress(io.StringIO())
    with checked_out(repository, "HEAD") as base:
        spec = Spec(
            sides=Sides(base=base, head=repository),
            source=str(micro),
            levels=("baseline",),
            max_pairs=1,
        )
        result = run_pairs(spec, decide, progress)
        (base / "sdopt" / "__init__.py").unlink()
        with pytest.raises(WorkerError, match=r"the base worker.*(?s:.*)sdopt was imported from"):
            run_pairs(spec, decide, progress)
    assert worktrees(repository) == [str(repository)]
    assert result.redefined == {"baseline": "steps 2 -> 3"}
    work = result.work["baseline"]
    assert [work[side]["unet_evaluations"] for side in ("base", "head")] == [4, 6]
    (pair,) = result.pairs
    assert [len(side.rounds_ms) for side in (pair.base, pair.head)] == [12, 12]
    assert set(pair.metrics) == {"latency_ms"}
    assert [verdict.metric for verdict in result.verdicts] == ["latency_ms"]


def test_a_station_generates_measures_and_carries_faults(micro: Path) -> None:
    station = worker.Station(Path(sdopt.__file__).parents[1], str(micro), None)
    hello = worker.perform(station, "hello", {})
    assert "baseline" in hello["levels"]
    loaded = worker.perform(station, "load", {"level": "baseline"})
    assert loaded["level"]["steps"] == 30
    assert loaded["first_call_s"] > 0
    identity = worker.perform(station, "identity", {})
    assert set(identity) == {"hardware", "hardware_key", "source", "environment"}
    assert identity["environment"]["torch"]
    assert len(worker.perform(station, "rounds", {"count": 2})["ms"]) == 2
    forward = station.pipeline.unet.forward
    for size in ({}, {"image_ms": 100.0}):
        assert worker.perform(station, "inject", {"fault": "loop:0.01", **size}) == {}
        assert station.pipeline.unet.forward is not forward
    assert worker.perform(station, "inject", {"fault": "none"}) == {}
    assert station.pipeline.unet.forward == forward
    on_cuda = station.device.type == "cuda"
    peak = worker.perform(station, "memory", {})["peak_allocated_mib"]
    assert (peak is not None) is on_cuda
    assert worker.perform(station, "work", {})["work"]["unet_evaluations"] == 60
    assert worker.perform(station, "free", {}) == {}
    assert station.pipeline is None


@pytest.mark.parametrize(
    ("do", "arguments", "words"),
    [
        ("dance", {}, "unknown command 'dance'; choose from: hello, "),
        ("load", {"level": "fastest"}, "unknown level 'fastest'; choose from: baseline"),
    ],
)
def test_a_station_names_what_it_cannot_do(do: str, arguments: dict[str, str], words: str) -> None:
    station = worker.Station(Path(), "embedded", None)
    assert words in worker.perform(station, do, arguments)["error"]
