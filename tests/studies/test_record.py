"""Recorded pairs hold every round of both sides, unchanged and with each fault."""

from __future__ import annotations

import io
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sdopt.bench.ab import Sides, Spec
from sdopt.bench.ab.rounds import BLOCKS
from sdopt.errors import SdoptError, UnknownNameError, WorkerError
from sdopt.util.progress import Progress
from studies.power import record
from studies.power.evidence import fault_table
from studies.power.samples import Samples
from studies.power.shares import GROUPS, expanded, share

FAKE_WORKER = Path(__file__).parents[1] / "ab_fake_worker.py"
SLOW = ["loop:0.01", "loop:0.03", "host:0.05"]


class Stage:
    """A tree of fake workers, and what they were asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "samples.json"
        (folder / "tree").mkdir()
        self.write()

    def write(self, **script: Any) -> None:
        levels = {"final": {"ms": [100.004, 101.0, 102.0], "peak_mib": 50.0}}
        content = json.dumps({"levels": levels, **script})
        (self.folder / "tree" / "script.json").write_text(content)

    def record(self, pairs: int, **plan: Any) -> list[dict[str, Any]]:
        tree = self.folder / "tree"
        spec = Spec(sides=Sides(base=tree, head=tree), max_pairs=pairs, worker=FAKE_WORKER)
        made_by = {"date": "today", "commit": "abc", "command": "record"}
        whole = record.Plan(spec=spec, level="final", **plan)
        return record.record(whole, self.out, Progress(io.StringIO()), made_by)

    def asked(self, *words: str) -> list[str]:
        lines = (self.folder / "journal").read_text().splitlines()
        return [line for line in (one.split(" ", 1)[1] for one in lines) if line.startswith(words)]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    return Stage(tmp_path)


def test_every_pair_is_recorded_unchanged_and_with_its_share_of_the_faults(stage: Stage) -> None:
    stage.record(3, faults=SLOW, per_pair=2)
    run = json.loads(stage.out.read_text())["run"]
    assert [(p["pair"], p["first"], p["fault"]) for p in run["pairs"]] == [
        (1, "base", "none"),
        (1, "base", "loop:0.01"),
        (1, "base", "loop:0.03"),
        (2, "head", "none"),
        (2, "head", "host:0.05"),
        (2, "head", "loop:0.01"),
        (3, "base", "none"),
        (3, "base", "loop:0.03"),
        (3, "base", "host:0.05"),
    ]
    rounds = [p[f"{side}_rounds_ms"] for p in run["pairs"] for side in ("base", "head")]
    assert {len(times) for times in rounds} == {12}
    assert {ms for times in rounds for ms in times} == {100.0, 101.0, 102.0}
    assert {name: run[name] for name in ("hardware", "source", "date", "commit", "level")} == {
        "hardware": "a fake",
        "source": "auto",
        "date": "today",
        "commit": "abc",
        "level": "final",
    }
    assert [line.split(" | ")[:2] for line in fault_table(Samples(pairs=run["pairs"]))[2:]] == [
        ["| none", "3"],
        ["| loop:0.01", "2"],
        ["| loop:0.03", "2"],
        ["| host:0.05", "2"],
    ]


def test_the_head_carries_its_faults_there_and_back_again(stage: Stage) -> None:
    stage.record(2, faults=["loop:0.03"])
    turns = [
        line.split()[1] if line[0] == "i" else "rounds"
        for line in stage.asked("inject ", "rounds 1")
    ]
    one = ["rounds", "none", "rounds", "loop:0.03", "rounds"]  # base, head, head with the fault
    back = ["loop:0.03", "rounds", "none", "rounds", "rounds"]
    assert turns == [*[*one, *back] * 6, "none", *[*back, *one] * 6, "none"]
    assert {line.split()[2] for line in stage.asked("inject loop")} == {"101.0"}


def test_a_batch_is_loaded_before_anything_of_it_is_measured(stage: Stage) -> None:
    stage.record(3, at_once=2)
    order = [line.split()[0] for line in stage.asked("load", "identity", "rounds 3")]
    assert order == [*["load"] * 4, "identity", *["rounds"] * 4, *["load"] * 2, *["rounds"] * 2]
    assert len(set(stage.asked("starts"))) == 6
    assert stage.asked("compiles") == ["compiles with 1"] * 5  # all but the first


def test_with_a_warm_cache_no_process_loads_alone(stage: Stage) -> None:
    stage.record(1, warm_cache=True)
    assert stage.asked("compiles") == ["compiles with 1"] * 2


def test_memory_is_taken_before_the_times_one_fault_a_pair(stage: Stage) -> None:
    stage.write(device="cuda")
    samples = stage.record(2, faults=["memory:0.05", "leak:64"])
    assert [(p["fault"], p["base_peak_mib"], p["head_peak_mib"]) for p in samples] == [
        ("none", 50.0, 50.0),
        ("memory:0.05", 50.0, 50.0),
        ("none", 50.0, 50.0),
        ("leak:64", 50.0, 50.0),
    ]
    taken = ["memory", "inject leak:64 1.0", "rounds 3", "memory", "inject none"]
    asked = stage.asked("inject", "memory", "rounds 3")
    last = max(i for i, word in enumerate(asked) if word == taken[1]) - 1
    assert asked[last : last + 5] == taken
    # The graphs of faults of time come later: their memory stays.
    assert all("rounds" in word or "none" in word for word in asked[last + 5 :])


def test_memory_is_refused_where_none_is_measured(stage: Stage) -> None:
    with pytest.raises(SdoptError, match="leak:64: memory is only measured with CUDA"):
        stage.record(1, faults=["leak:64"])


def test_no_batch_begins_that_would_not_end_in_time(stage: Stage) -> None:
    assert {p["pair"] for p in stage.record(5, minutes=1e-9, first_pair=7)} == {7}


def test_a_process_that_dies_ends_the_recording(stage: Stage) -> None:
    stage.write(faults={"load": "crash"})
    with pytest.raises(WorkerError, match="Traceback of the crash"):
        stage.record(2, at_once=2)
    assert not stage.out.exists()


def test_shares_are_even() -> None:
    for per_pair in (1, 2, 4):
        counts = Counter(
            f for pair in range(1, 16) for f in share(GROUPS["slowdowns"], pair, per_pair)
        )
        assert set(counts.values()) == {per_pair}
    assert share([], 1, 3) == []
    assert share(["loop:1"], 2, 3) == ["loop:1"]


def test_sets_of_faults_have_names() -> None:
    assert expanded(["loop:0.01", "slowdowns"])[:2] == ["loop:0.01", "decoder:0.01"]
    assert len(expanded(["slowdowns", "memory"])) == 19
    with pytest.raises(UnknownNameError, match="slowdowns"):
        expanded(["sleep:0.1"])
    for fault in ("loop", "loop:", "loop:x", "loop:0", "loop:nan"):
        with pytest.raises(SdoptError, match="write it as in loop"):
            expanded([fault])


def test_the_commit_is_that_of_the_tree(tmp_path: Path) -> None:
    assert record.commit_at(tmp_path) is None
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"]):
        name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *name, *words], check=True)
    assert len(record.commit_at(tmp_path) or "") == 12


def test_a_level_that_does_not_exist_is_an_error(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "samples.json"
    arguments = ["--level", "fastest", "--pairs", "1", "--source", str(micro), "--out", str(out)]
    assert record.main(arguments) == 2
    assert "fastest" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("wrong", [["--pairs", "0"], ["--at-once", "0"], ["--minutes", "x"]])
def test_wrong_numbers_are_refused(wrong: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        record.main(["--out", str(tmp_path / "samples.json"), *wrong])


def test_real_forked_processes_are_recorded(
    micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setitem(BLOCKS, "cpu", 2)
    out = tmp_path / "samples.json"
    files = ["--source", str(micro), "--out", str(out), "--commit", "abc"]
    options = ["--level", "baseline", "--pairs", "1", "--forked", "--faults", "host:0.5"]
    assert record.main([*files, *options]) == 0
    assert "host:0.5: head / base 1." in capsys.readouterr().out
    run = json.loads(out.read_text())["run"]
    assert [pair["fault"] for pair in run["pairs"]] == ["none", "host:0.5"]
    assert run["hardware"].startswith("cpu ")
    assert "--forked" in run["command"]
