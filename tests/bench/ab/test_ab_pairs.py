"""The coordinator: who generates when, when it stops, and what it does about workers that fail."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from ab_repository import eventually, is_running

from sdopt.bench.ab import Result, Sides, Spec, run_pairs
from sdopt.bench.ab.process import inductor_cache
from sdopt.bench.ab.rounds import BLOCK_ROUNDS, BLOCKS, latency_pair, schedule
from sdopt.bench.judge.verdict import Outcome, Verdict
from sdopt.errors import SdoptError, UnknownNameError, WorkerError
from sdopt.util.progress import Progress

FAKE_WORKER = Path(__file__).parents[2] / "ab_fake_worker.py"
STEADY = {"ms": [10.0]}


@dataclass
class Judge:
    """Decides each metric once it has as many pairs as `needs` says for its level."""

    needs: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str, Sequence[float], Sequence[float]]] = field(default_factory=list)

    def __call__(
        self, level: str, metric: str, base: Sequence[float], head: Sequence[float]
    ) -> Verdict | None:
        self.asked.append((level, metric, base, head))
        if len(base) < self.needs.get(level, 1):
            return None
        return Verdict(level=level, metric=metric, outcome=Outcome.PASS, reason="enough pairs")


@dataclass
class Stage:
    """Two trees with scripts for the fake worker."""

    folder: Path

    def write(self, side: str, **script: Any) -> None:
        tree = self.folder / side
        tree.mkdir(exist_ok=True)
        (tree / "script.json").write_text(json.dumps(script))

    @property
    def spec(self) -> Spec:
        sides = Sides(base=self.folder / "base", head=self.folder / "head")
        return Spec(sides=sides, source="embedded", max_pairs=3, worker=FAKE_WORKER)

    def run(self, judge: Judge | None = None, **changes: Any) -> Result:
        progress = Progress(io.StringIO())
        return run_pairs(replace(self.spec, **changes), judge or Judge(), progress)

    @property
    def journal(self) -> list[str]:
        return (self.folder / "journal").read_text().splitlines()

    def noted(self, word: str) -> list[str]:
        return [line for line in self.journal if line.split()[1] == word]

    def pids(self) -> list[int]:
        return [int(line.split()[2]) for word in ("starts", "child") for line in self.noted(word)]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    stage = Stage(tmp_path)
    for side in ("base", "head"):
        stage.write(side, levels={"one": STEADY})
    return stage


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_sides_take_turns_in_abba_order(device: str, stage: Stage) -> None:
    for side in ("base", "head"):
        stage.write(side, levels={"one": STEADY}, device=device)
    result = stage.run(Judge(needs={"one": 2}))
    turns = [line.split()[0] for line in stage.noted("rounds")]
    base_first = ["base", "head", "head", "base"] * (BLOCKS[device] // 2)
    head_first = ["head", "base", "base", "head"] * (BLOCKS[device] // 2)
    assert turns == base_first + head_first
    assert [pair.first for pair in result.pairs] == ["base", "head"]
    assert {line.split()[2] for line in stage.noted("rounds")} == {str(BLOCK_ROUNDS[device])}
    assert {len(pair.base.rounds_ms) for pair in result.pairs} == {12}
    assert result.device == device


def test_each_pair_has_fresh_processes_and_the_one_that_generates_first_starts_first(
    stage: Stage,
) -> None:
    stage.run(Judge(needs={"one": 3}))
    starts = stage.noted("starts")
    assert [line.split()[0] for line in starts] == ["base", "head", "head", "base", "base", "head"]
    assert len(set(stage.pids())) == 6
    assert len(stage.noted("quit")) == 6
    assert not any(is_running(pid) for pid in stage.pids())


def test_a_level_goes_through_its_commands_in_order(stage: Stage) -> None:
    stage.run(Judge(needs={"one": 2}))
    of_base = [line.split()[1] for line in stage.journal if line.startswith("base ")]
    pair = ["starts", "hello", "load", *["rounds"] * BLOCKS["cpu"], "memory", "free", "quit"]
    first_pair = [*pair[:-2], "work", *pair[-2:]]
    assert of_base == first_pair + pair


def test_the_latency_of_a_pair_is_the_median_over_matched_blocks(stage: Stage) -> None:
    drift = [100.0 * 1.5**index for index in range(12)]
    stage.write("base", levels={"one": {"ms": drift}})
    stage.write("head", levels={"one": {"ms": [1.1 * ms for ms in drift[:-1]] + [1e9]}})
    pair = stage.run().pairs[0]
    base_ms, head_ms = pair.metrics["latency_ms"]
    assert head_ms / base_ms == pytest.approx(1.1)
    assert base_ms == pytest.approx((drift[5] + drift[6]) / 2)
    assert pair.base.rounds_ms == pytest.approx(drift)
    assert pair.base.first_call_s == 1.5


def test_rounds_of_one_block_are_taken_together() -> None:
    base = [10.0, 10.0, 99.0, 20.0, 20.0, 20.0]
    head = [5.0, 20.0, 20.0, 40.0, 1.0, 80.0]
    assert latency_pair(base, head, 3) == (20.0, pytest.approx(40.0))


def test_matched_blocks_are_neighbours() -> None:
    order = list(schedule("head", 4))
    assert order == ["head", "base", "base", "head", "head", "base", "base", "head"]


def test_decided_levels_are_dropped_from_later_pairs(stage: Stage) -> None:
    levels = {"quick": STEADY, "slow": STEADY}
    for side in ("base", "head"):
        stage.write(side, levels=levels)
    judge = Judge(needs={"slow": 3})
    result = stage.run(judge, max_pairs=5)
    assert Counter((pair.level, pair.pair) for pair in result.pairs) == Counter(
        [("quick", 1), ("slow", 1), ("slow", 2), ("slow", 3)]
    )
    assert [(level, len(base)) for level, _, base, _ in judge.asked] == [
        ("quick", 1),
        ("slow", 1),
        ("slow", 2),
        ("slow", 3),
    ]
    assert [verdict.level for verdict in result.verdicts] == ["quick", "slow"]
    assert result.undecided == ()


def test_a_judge_that_never_decides_ends_with_the_last_pair(stage: Stage) -> None:
    result = stage.run(Judge(needs={"one": 99}), max_pairs=2)
    assert [pair.pair for pair in result.pairs] == [1, 2]
    assert result.undecided == (("one", "latency_ms"),)
    assert result.verdicts == ()


def test_memory_is_judged_where_it_is_measured_and_not_again_once_decided(stage: Stage) -> None:
    stage.write("base", levels={"one": {**STEADY, "peak_mib": 100.0}})
    stage.write("head", levels={"one": {**STEADY, "peak_mib": 110.0}})

    class Slow(Judge):
        def __call__(self, level: str, metric: str, base: Any, head: Any) -> Verdict | None:
            self.needs = {"one": 2 if metric == "latency_ms" else 1}
            return super().__call__(level, metric, base, head)

    judge = Slow()
    result = stage.run(judge)
    *first, second = [(metric, len(base)) for _, metric, base, _ in judge.asked]
    assert sorted(first) == [("latency_ms", 1), ("peak_allocated_mib", 1)]
    assert second == ("latency_ms", 2)
    assert result.values("one", "peak_allocated_mib") == ((100.0, 100.0), (110.0, 110.0))
    assert {verdict.metric for verdict in result.verdicts} == {"latency_ms", "peak_allocated_mib"}


def test_new_removed_and_redefined_levels_are_told(stage: Stage) -> None:
    def script(**levels: dict[str, Any]) -> dict[str, Any]:
        return {name: {**STEADY, "definition": fields} for name, fields in levels.items()}

    base = script(kept={"why": "old", "steps": 30}, moved={"steps": 20, "gone": 1}, old={})
    head = script(kept={"why": "new", "tf32": False}, moved={"steps": 10}, fresh={})
    stage.write("base", levels=base)
    stage.write("head", levels=head)
    result = stage.run()
    assert result.redefined == {"moved": "steps 20 -> 10, gone 1 -> None"}
    assert result.new == ("fresh",)
    assert result.removed == ("old",)
    assert [pair.level for pair in result.pairs] == ["kept", "moved"]
    assert result.work["kept"] == {side: {"unet_evaluations": 60} for side in ("base", "head")}


def test_only_the_levels_asked_for_are_measured(stage: Stage) -> None:
    for side in ("base", "head"):
        stage.write(side, levels={"one": STEADY, "two": STEADY})
    assert [pair.level for pair in stage.run(levels=("two",)).pairs] == ["two"]


def test_a_level_that_the_head_lost_is_told_though_only_the_heads_are_asked_for(
    stage: Stage,
) -> None:
    stage.write("base", levels={"one": STEADY, "old": STEADY})
    result = stage.run(levels=("one",))
    assert (result.removed, [pair.level for pair in result.pairs]) == (("old",), ["one"])


def test_nothing_in_common_is_nothing_to_judge(stage: Stage) -> None:
    stage.write("base", levels={"other": STEADY})
    result = stage.run()
    assert (result.pairs, result.verdicts) == ((), ())
    assert len(stage.noted("starts")) == 2


def test_a_level_of_neither_side_is_named(stage: Stage) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown level 'ones'.*did you mean 'one'"):
        stage.run(levels=("ones",))


def test_fewer_than_one_pair_is_refused(stage: Stage) -> None:
    with pytest.raises(SdoptError, match="max_pairs is 0"):
        stage.run(max_pairs=0)


FAULTS = {
    ("hello", "crash"): r"asked for 'hello', ended \(status 3\)",
    ("load", "crash"): r"asked for 'load' of level 'one', ended \(status 3\)",
    ("rounds", "hang"): r"asked for 'rounds' of level 'one', said nothing for 1 s",
    ("rounds", "garbage"): r"answered b'lorem ipsum\\n', which is no JSON object",
    ("memory", "list"): r"answered b'\[1\]\\n', which is no JSON object",
    ("free", "two lines"): r"which is no JSON object",
    ("work", "error"): r"asked for 'work' of level 'one', failed: ValueError: no such thing",
    ("quit", "crash"): r"asked for 'quit', ended \(status 3\)",
}


@pytest.mark.parametrize("side", ["base", "head"])
@pytest.mark.parametrize(("command", "fault"), FAULTS)
def test_a_worker_that_fails_is_named_and_none_is_left(
    command: str, fault: str, side: str, stage: Stage
) -> None:
    stage.write(side, levels={"one": STEADY}, faults={command: fault})
    with pytest.raises(WorkerError) as caught:
        stage.run(timeout_s=1.0)
    message = str(caught.value)
    assert message.startswith(f"the {side} worker in {stage.folder / side}, asked for ")
    assert re.search(FAULTS[command, fault], message)
    assert ("  Traceback of the crash" in message) == (fault == "crash")
    assert f"repair it in the {side}" in message
    assert len(stage.noted("child")) == (fault == "hang")
    assert eventually(lambda: not any(is_running(pid) for pid in stage.pids()))


RUNNER = """
import io, signal, sys
from pathlib import Path
from sdopt.bench.ab import Sides, Spec, run_pairs
from sdopt.util.progress import Progress

# A test run in the background of a shell script inherits that Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
folder, worker = map(Path, sys.argv[1:])
sides = Sides(base=folder / "base", head=folder / "head")
run_pairs(Spec(sides=sides, max_pairs=1, worker=worker), lambda *_: None, Progress(io.StringIO()))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_coordinator_leaves_no_worker_and_no_child_of_one(
    number: signal.Signals, stage: Stage
) -> None:
    stage.write("head", levels={"one": STEADY}, faults={"rounds": "hang"})
    command = (sys.executable, "-c", RUNNER, str(stage.folder), str(FAKE_WORKER))
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as runner:
        assert eventually(lambda: (stage.folder / "journal").exists())
        assert eventually(lambda: len(stage.noted("child")) == 1)
        runner.send_signal(number)
    assert len(stage.pids()) == 3
    assert eventually(lambda: not any(is_running(pid) for pid in stage.pids()))


@pytest.mark.parametrize("times", [[0.0], [-1.0], [float("nan")], [float("inf")], ["1"], [None]])
def test_worthless_times_are_refused(times: list[Any], stage: Stage) -> None:
    stage.write("head", levels={"one": {"ms": times}})
    with pytest.raises(WorkerError, match=r"the head worker.*which are no times"):
        stage.run()


def test_the_log_is_cut_to_its_end(stage: Stage, tmp_path: Path) -> None:
    noisy = tmp_path / "noisy.py"
    noisy.write_text("import sys\nfor i in range(9999): print('line', i, file=sys.stderr)\n")
    with pytest.raises(WorkerError) as caught:
        stage.run(worker=noisy)
    log = [line for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert log == [f"  line {i}" for i in range(9979, 9999)]


def test_source_and_prompts_mean_the_same_in_the_other_tree(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stage.folder)
    (stage.folder / "weights").mkdir()
    stage.run(source="weights", prompts=Path("p.jsonl"))
    assert [line.split("|")[0].split(" ", 3)[3] for line in stage.noted("starts")] == [
        f"{stage.folder / 'weights'} {stage.folder / 'p.jsonl'}"
    ] * 2
    (stage.folder / "journal").unlink()
    (stage.folder / "embedded").mkdir()
    stage.run()
    assert {line.split()[3] for line in stage.noted("starts")} == {"embedded"}


def test_each_side_keeps_a_compile_cache_of_its_own(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/caches")
    stage.run()
    caches = [line.split("|")[1] for line in stage.noted("starts")]
    assert caches == ["/caches/sdopt-ab/base", "/caches/sdopt-ab/head"]


def test_equal_trees_can_share_the_suites_compile_cache(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/caches")
    stage.run(own_caches=False)
    assert [line.split("|")[1] for line in stage.noted("starts")] == ["/caches"] * 2


@pytest.mark.parametrize("policy", [None, "ACTIVE"])
def test_openmp_waits_asleep_unless_the_user_wants_it_awake(
    policy: str | None, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    stage.run()
    assert {line.split("|")[2] for line in stage.noted("starts")} == {policy or "PASSIVE"}


def test_the_default_cache_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert inductor_cache() == Path(default_cache_dir())
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") is None


def test_what_takes_long_is_told(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdopt.util.progress.FIRST_LINE_S", 0.05)
    stage.write("head", levels={"one": STEADY}, faults={"load": "hang"})
    stream = io.StringIO()
    with pytest.raises(WorkerError):
        run_pairs(replace(stage.spec, load_timeout_s=0.5), Judge(), Progress(stream))
    assert "pair 1 of at most 3: [one] loading on both sides: 0 s ..." in stream.getvalue()
