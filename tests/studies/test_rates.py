"""The table of error rates counts what the judgements do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from studies.power import rates
from studies.power.samples import read_samples

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


def with_slowdown(samples: Path, **fields: Any) -> Path:
    """The same with heads that a real fault made 8 % slower, eight pairs of it."""
    data = json.loads(samples.read_text())
    plain = [{**pair, "pair": n, **fields} for n, pair in enumerate(data["run"]["pairs"], 1)]
    slow = [
        {
            **pair,
            "fault": "host:0.05",
            "head_rounds_ms": [1.08 * ms for ms in pair["base_rounds_ms"]],
        }
        for pair in (2 * plain)[: rates.PAIRS]
    ]
    data["run"]["pairs"] = [{**pair, "fault": "none"} for pair in plain] + slow
    samples.write_text(json.dumps(data))
    return samples


def test_recorded_pairs_keep_together(samples: Path) -> None:
    runs = rates.recorded(read_samples([samples]))
    base, head = runs.draw(np.random.default_rng(0), 0.0)
    assert base.shape == (rates.PAIRS + rates.STORED_RUNS, 2)
    assert set(np.abs(head - base[: rates.PAIRS]).ravel()) == {0.5}
    assert runs.real == []
    slower = runs.draw(np.random.default_rng(0), 0.1)[1]
    assert slower == pytest.approx(1.1 * head)


def test_real_slowdowns_are_drawn_where_there_are_any(samples: Path) -> None:
    runs = rates.recorded(read_samples([with_slowdown(samples)]))
    assert runs.real == [0.05]
    assert [runs.heading(size) for size in (0.0, 0.03, 0.05)] == [
        "false alarms",
        "3 %",
        "5 %, real",
    ]
    base, head = runs.draw(np.random.default_rng(0), 0.05)
    assert head / base[: rates.PAIRS] == pytest.approx(np.full((rates.PAIRS, 2), 1.08))
    assert rates.alarms(method("pairs"), runs, 0.05, levels=1, trials=5) == 5


def test_the_table_is_printed(samples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--trials", "3", "--levels", "1"]
    assert rates.main(arguments) == 0
    assert rates.main([*arguments, "--samples", str(samples)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| judged by | false alarms | 1 % | 2 % | 3 % | 5 % | 10 % |"
    assert len(lines) == 2 * (2 + len(rates.METHODS))


def test_the_tables_are_written_between_their_marks(samples: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    marks = [
        f"<!-- {name}: {end} -->" for name in ("cpu final", "noisy") for end in ("begin", "end")
    ]
    page.write_text("\n".join(["before", *marks, "after"]))
    files = ["--samples", str(with_slowdown(samples, device="cpu", level="final"))]
    assert rates.main([*files, "--trials", "1", "--page", str(page)]) == 0
    assert rates.main([*files, "--trials", "2", "--page", str(page), "--mark", "noisy"]) == 0
    between = page.read_text().split(marks[0])[1].split(marks[1])
    assert "| a run against the 3 before it |" in between[0]
    assert "| judged by |" in between[0]
    assert between[1].strip().startswith(marks[2])
    assert page.read_text().endswith(f"{marks[3]}\nafter")


def test_a_page_without_marks_is_refused(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks")
    arguments = ["--samples", str(samples), "--trials", "1", "--page", str(page)]
    assert rates.main(arguments) == 2
    assert "<!-- cpu final: begin -->" in capsys.readouterr().err
    assert page.read_text() == "no marks"


@pytest.mark.parametrize("wrong", [["--trials", "0"], ["--levels", "0"], ["--between", "-1"]])
def test_wrong_numbers_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        rates.main(wrong)
