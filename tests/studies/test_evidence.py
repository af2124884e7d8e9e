"""Recorded pairs are counted in their order, each once, with exact intervals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from measured import recorded, sample

from sdopt.bench.judge.statistics import PairedPlan
from sdopt.errors import BrokenFileError
from studies.power import evidence
from studies.power.samples import (
    Samples,
    comparisons,
    fault_against_history,
    read_samples,
    unchanged_against_history,
)


def test_comparisons_take_pairs_of_their_own() -> None:
    steady = [(100.0, 100.0 + n % 2) for n in range(11)]
    assert list(comparisons(steady, PairedPlan(matters=0.05))) == ["pass", "pass"]
    assert list(comparisons(steady[:3], PairedPlan())) == []


def test_unchanged_runs_are_judged_by_those_before_them() -> None:
    samples = recorded()
    assert unchanged_against_history(samples, 3) == [False] * 2 * 21
    assert unchanged_against_history(samples, 10) == [False] * 2 * 14
    assert fault_against_history(samples, "loop:0.05", 10) == [True] * 14


def test_a_jump_is_an_alarm_of_the_run_that_has_it() -> None:
    pairs = [sample(pair, "none", 1.6 if pair == 12 else 1.0) for pair in range(1, 13)]
    assert unchanged_against_history(Samples(pairs=pairs), 10) == [False] * 3 + [True]


def test_everything_stands_in_the_tables() -> None:
    lines = evidence.evidence(recorded())
    assert "record it" in lines
    for line in (
        "| a run against the 5 before it | 38 | 0 of 38 (0 to 9 %) |",
        "| pairs, each used once: 6 pass | 6 | 0 of 6 (0 to 46 %) |",
        "| their memory: 6 pass | 6 | 0 of 6 (0 to 46 %) |",
        "| 5 % | 6 of 6 (54 to 100 %) | 14 of 14 (77 to 100 %) |",
    ):
        assert line in lines
    rows = {line.split(" | ")[0].strip("| "): line for line in lines}
    assert "| +5.0" in rows["loop:0.05"]
    assert "| 4000.0 to 4040.0 | +1.00 to +1.00 % | 3 of 3 (" in rows["memory:0.01"]
    assert "| 4000.0 to 4192.0 | +4.80 to +4.80 % | 3 of 3 (" in rows["leak:64"]


def test_few_pairs_are_called_too_few() -> None:
    lines = evidence.evidence(Samples(pairs=[sample(1, "none", 1.0), sample(1, "host:0.1", 1.1)]))
    assert "| a run against the 3 before it | 0 | too few |" in lines
    assert "| host:0.1 | 1 | +10.11 % | - | too few | too few |" in lines


@pytest.mark.parametrize("text", ["", "{}", '{"run": []}', '{"run": {"pairs": []}}'])
def test_a_file_without_pairs_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "samples.json"
    path.write_text(text)
    with pytest.raises(BrokenFileError, match=r"samples\.json"):
        read_samples([path])


def test_files_are_read_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / "1.json", tmp_path / "2.json"]
    for number, path in enumerate(paths, 1):
        run = {"date": number, "pairs": [sample(number, "none", 1.0)]}
        path.write_text(json.dumps({"run": run}))
    samples = read_samples(paths)
    assert [pair["pair"] for pair in samples.pairs] == [1, 2]
    assert samples.runs == [{"date": 1}, {"date": 2}]
