"""Rows grow in a file that is always whole, and never mix two machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdopt.errors import BrokenFileError
from studies.rows import Rows, continue_rows, latency_ms, mean_ssim, read_rows

HERE = {"hardware": "a gpu", "source": "sd15-random"}


def test_a_row_is_kept_and_replaced_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.json"
    rows = Rows(path=path, made_on=HERE)
    rows.put({"name": "a", "rounds_ms": [3.0, 1.0, 2.0]})
    rows.put({"name": "b", "error": "did not finish in 5 s"})
    rows.put({"name": "a", "rounds_ms": (4.0,)})
    found = read_rows(path)
    assert found.made_on == HERE
    assert list(found.rows) == ["a", "b"]
    assert latency_ms(found.rows["a"]) == 4.0
    assert latency_ms(found.rows["b"]) is None
    assert found.rows["a"]["measured_at"].endswith("+00:00")


def test_rows_of_the_same_stack_are_continued_and_others_are_not(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    continue_rows(path, HERE).put({"name": "a"})
    assert list(continue_rows(path, HERE).rows) == ["a"]
    assert continue_rows(path, {**HERE, "hardware": "another"}).rows == {}


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"schema": "sdopt-rows/1"}', '{"schema": "sdopt-rows/1", "rows": 3}']
)
def test_another_file_is_named_and_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(BrokenFileError, match=str(path)):
        continue_rows(path, HERE)
    assert path.read_text() == text


def test_nan_is_not_written(tmp_path: Path) -> None:
    rows = Rows(path=tmp_path / "rows.json", made_on=HERE)
    with pytest.raises(ValueError, match="not JSON compliant"):
        rows.put({"name": "a", "rounds_ms": [float("nan")]})
    assert not rows.path.exists()


def test_the_mean_ssim_is_over_the_prompts() -> None:
    assert mean_ssim({"ssim_cost": {"cat": 1.0, "dog": 0.5}}) == 0.75
    assert mean_ssim({"ssim_cost": {}}) is None
    assert mean_ssim(json.loads("{}")) is None
