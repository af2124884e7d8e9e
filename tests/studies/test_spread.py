"""Each condition is a fresh run of the suite below a folder of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from studies import latent_spread as spread


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[str, ...], dict[str, str]]]:
    """The commands and environments of all runs; they end with 0, or the last one with 1."""
    seen: list[tuple[tuple[str, ...], dict[str, str]]] = []

    def run(command: tuple[str, ...], **options: Any) -> subprocess.CompletedProcess[str]:
        seen.append((command, options["env"]))
        failed = "--sdopt-source=bad" in command[-1]
        return subprocess.CompletedProcess(command, int(failed))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(spread.subprocess, "run", run)
    return seen


def test_every_condition_runs_by_itself(runs: list[Any], tmp_path: Path) -> None:
    assert spread.main([str(tmp_path)]) == 0
    assert len(runs) == len(spread.CPU)
    for (name, condition), (command, variables) in zip(spread.CPU.items(), runs, strict=True):
        assert command[:2] == (sys.executable, "-c")
        assert f"--sdopt-baselines={tmp_path / name}" in command[2]
        assert "--sdopt-accept" in command[2]
        assert condition.before in command[2]
        assert variables.items() >= dict(condition.variables).items()
        own_cache = variables.get("TORCHINDUCTOR_CACHE_DIR") == str(tmp_path / "compiled" / name)
        assert own_cache is condition.compiles_anew


def test_conditions_and_levels_are_picked(runs: list[Any], tmp_path: Path) -> None:
    arguments = ["--conditions", "one-thread", "--source", "micro", "-k", "[final]"]
    assert spread.main([str(tmp_path), *arguments]) == 0
    ((command, _),) = runs
    assert "--sdopt-source=micro" in command[2]
    assert "test_drift and ([final])" in command[2]


def test_a_failed_run_is_told(
    runs: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = spread.main([str(tmp_path), "--conditions", "as-it-is", "avx2", "--source", "bad"])
    assert (code, len(runs)) == (2, 2)
    assert "error: avx2 ended with exit code 1" in capsys.readouterr().err


def test_an_unknown_condition_is_named(
    runs: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        spread.main([str(tmp_path), "--conditions", "avx1024"])
    assert "unknown condition 'avx1024'" in capsys.readouterr().err
    assert runs == []
