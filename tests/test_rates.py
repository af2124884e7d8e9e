"""The table of error rates counts what the judgements do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sdopt.selftest import rates

QUIET = rates.simulated(between=0.001, within=0.001)


def method(name: str) -> rates.Method:
    return next(method for method in rates.METHODS if name in method.name)


@pytest.mark.parametrize("name", [method.name for method in rates.METHODS])
def test_every_method_sees_a_tenfold_time(name: str) -> None:
    assert rates.alarms(method(name), QUIET, slowdown=9.0, levels=1, trials=5) == 5


def test_only_the_pooled_test_blames_unchanged_runs() -> None:
    counts = {m.name: rates.alarms(m, QUIET, 0.0, levels=9, trials=20) for m in rates.METHODS}
    blaming = [name for name, count in counts.items() if count]
    assert blaming == ["pooled Mann-Whitney, p < 0.002"]
    assert counts[blaming[0]] >= 5


def test_pairs_see_3_percent_where_a_fixed_limit_does_not() -> None:
    assert rates.alarms(method("pairs"), QUIET, 0.03, levels=9, trials=20) == 20
    assert rates.alarms(method("fixed"), QUIET, 0.03, levels=9, trials=20) == 0


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    pairs = [
        {"base_rounds_ms": [100.0 + n, 101.0 + n], "head_rounds_ms": [100.5 + n, 101.5 + n]}
        for n in range(5)
    ]
    path = tmp_path / "verdicts.json"
    path.write_text(json.dumps({"run": {"pairs": pairs}}))
    return path


def test_recorded_pairs_keep_together(samples: Path) -> None:
    base, head = rates.recorded([samples])(np.random.default_rng(0))
    assert base.shape == head.shape == (max(rates.PAIRS, rates.STORED_RUNS), 2)
    assert set(np.abs(head - base).ravel()) == {0.5}


def test_the_table_is_printed(samples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--trials", "3", "--levels", "1"]
    assert rates.main(arguments) == 0
    assert rates.main([*arguments, "--samples", str(samples)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| judged by | false alarms | 1 % | 2 % | 3 % | 5 % | 10 % |"
    assert len(lines) == 2 * (2 + len(rates.METHODS))


@pytest.mark.parametrize("wrong", [["--trials", "0"], ["--levels", "0"], ["--between", "-1"]])
def test_wrong_numbers_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        rates.main(wrong)
