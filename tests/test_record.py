"""Recorded pairs hold every round of both sides, unchanged and with each fault."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from sdopt.ab import Sides, Spec
from sdopt.report.progress import Progress
from sdopt.selftest import rates, record

FAKE_WORKER = Path(__file__).with_name("ab_fake_worker.py")


def test_pairs_are_recorded_with_and_without_a_fault(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    script = {"levels": {"final": {"ms": [100.0, 101.0, 102.0]}}}
    (tree / "script.json").write_text(json.dumps(script))
    spec = Spec(sides=Sides(base=tree, head=tree), max_pairs=2, worker=FAKE_WORKER)
    out = tmp_path / "samples.json"
    record.record(spec, "final", ["loop:1.0"], out, Progress(io.StringIO()))
    pairs = json.loads(out.read_text())["run"]["pairs"]
    assert [(p["pair"], p["first"], p["fault"]) for p in pairs] == [
        (1, "base", "none"),
        (1, "base", "loop:1.0"),
        (2, "head", "none"),
        (2, "head", "loop:1.0"),
    ]
    assert {len(p[f"{side}_rounds_ms"]) for p in pairs for side in ("base", "head")} == {12}
    asked = [line.split(" ", 1)[1] for line in (tmp_path / "journal").read_text().splitlines()]
    assert [line for line in asked if line.startswith("inject")] == [
        "inject none",
        "inject loop:1.0",
    ] * 2
    assert [line.split(" | ")[:2] for line in rates.fault_table(pairs)[2:]] == [
        ["| none", "2"],
        ["| loop:1.0", "2"],
    ]


def test_a_level_that_does_not_exist_is_an_error(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "samples.json"
    arguments = ["--level", "fastest", "--pairs", "1", "--source", str(micro), "--out", str(out)]
    assert record.main(arguments) == 2
    assert "fastest" in capsys.readouterr().err
    assert not out.exists()
