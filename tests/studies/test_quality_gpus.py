"""What is run on GPUs for the docs: the commands, the factors, and an evaluation that fails."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stub_evaluation as stub

from sdopt.bench.report.results import marks
from sdopt.levels import LEVELS, cost_is_comparable
from studies import quality_gpus
from studies.quality_gpus import LOSSY, add_factors, command, main

LOSSY_FIELDS = ("decoder", "cfg_cutoff", "feature_cache")


def faked(monkeypatch: pytest.MonkeyPatch, code: int = 0) -> list[list[str]]:
    """Evaluations that are stubs of this process; the commands that were asked for."""
    asked: list[list[str]] = []

    def run(given: list[str], check: bool) -> Any:
        asked.append(given)
        if not code:
            stub.run(stub.of(22), Path(given[given.index("--out") + 1]))
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(quality_gpus.subprocess, "run", run)
    return asked


def test_scaling_compares_one_process_with_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = faked(monkeypatch)
    file = tmp_path / "scaling.json"
    page = tmp_path / "page.md"
    page.write_text("\n".join(marks("quality-scaling")))
    given = ["--out", str(tmp_path), "--json", str(file), "--page", str(page)]
    assert main(["scaling", *given]) == 0
    assert "| `turbo` | 1 |" in page.read_text()
    assert len(asked) == 2
    assert capsys.readouterr().out.count("| `turbo` |") == 2
    rows = json.loads(file.read_text())["rows"]
    assert {row["level"] for row in rows} == {"hoisted", "turbo"}


def test_a_factor_is_of_the_same_level() -> None:
    rows: list[dict[str, Any]] = [
        {"level": "turbo", "processes": 1, "images_per_s": 40.0},
        {"level": "final", "processes": 1, "images_per_s": None},
        {"level": "turbo", "processes": 2, "images_per_s": 78.0},
        {"level": "final", "processes": 2, "images_per_s": 20.0},
    ]
    add_factors(rows)
    assert [row["factor"] for row in rows] == [1.0, None, 1.95, None]


def test_lossy_keeps_each_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = faked(monkeypatch)
    file = tmp_path / "kept" / "scaling.json"
    assert main(["lossy", "--out", str(tmp_path), "--json", str(file), "--scenes", "9"]) == 0
    assert [given[given.index("--guidance") + 1] for given in asked] == ["3.0"] * 3 + ["7.5"]
    kept = {path.stem for path in file.parent.iterdir()}
    assert kept == {f"quality-{one.name}" for one in LOSSY}


def test_every_lossy_level_has_a_comparable_reference() -> None:
    told = set()
    for one in LOSSY:
        reference = LEVELS[one.reference]
        for level in map(LEVELS.__getitem__, one.levels.split(",")):
            if cost_is_comparable(level, reference):
                told.add(level.name)
    assert told >= {
        level.name
        for level in LEVELS.values()
        if any(getattr(level, name) != LEVELS["baseline"].as_dict()[name] for name in LOSSY_FIELDS)
    }


def test_an_evaluation_that_fails_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faked(monkeypatch, code=7)
    assert main(["scaling", "--out", str(tmp_path)]) == 2
    assert "scaling-1 ended with 7" in capsys.readouterr().err


def test_accelerate_starts_the_processes_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    words = " ".join(command(2, ["lossy", "--out", "x"]))
    assert "accelerate.commands.launch --multi_gpu --num_processes 2" in words
    assert words.endswith("-m sdopt.evaluate --out x")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch.distributed.run --standalone" in " ".join(command(2, []))
