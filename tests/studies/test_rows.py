"""Rows grow in a file that is always whole, and never mix two machines."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sdopt.errors import BrokenFileError
from studies import throughput
from studies.peers import __main__ as peers
from studies.rows import (
    NEXT_STEP,
    SCHEMA,
    Rows,
    continue_rows,
    latency_ms,
    mean_ssim,
    read_rows,
    set_aside,
)

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


def test_rows_of_the_same_stack_are_continued_and_others_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    continue_rows(path, HERE).put({"name": "a"})
    assert list(continue_rows(path, HERE).rows) == ["a"]
    before = path.read_bytes()
    other = {"hardware": "another", "source": "sd15-random", "environment": {"torch": "2.11.0"}}
    with pytest.raises(BrokenFileError) as caught:
        continue_rows(path, other)
    assert str(caught.value) == (
        f"{path} holds rows that were made on hardware a gpu, no torch; this is hardware another, "
        "torch 2.11.0: name another file with --json"
    )
    assert path.read_bytes() == before


def test_where_no_option_names_the_file_others_rows_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    assert set_aside(path, HERE) is None
    continue_rows(path, HERE).put({"name": "a"})
    assert set_aside(path, HERE) is None
    for number, hardware in enumerate(("another", "a third"), start=1):
        before, made_on = path.read_bytes(), {**HERE, "hardware": hardware}
        assert set_aside(path, made_on) == (aside := tmp_path / f"rows-before-{number}.json")
        assert aside.read_bytes() == before
        continue_rows(path, made_on).put({"name": "b"})
    assert list(read_rows(path).rows) == ["b"]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository in which rows.json is tracked; the tests run in it."""
    monkeypatch.chdir(tmp_path)
    Rows(path=Path("rows.json"), made_on=HERE).put({"name": "a"})
    for command in (("init", "-q"), ("add", "rows.json")):
        subprocess.run(("git", *command), check=True)
    return tmp_path


@pytest.mark.parametrize("content", ["{", '{"schema": "sdopt-rows/1", "made_on": {}, "rows": [1]}'])
def test_git_is_the_next_step_for_what_it_has_and_for_nothing_else(
    clone: Path, content: str
) -> None:
    own = clone / "own.json"
    for path in (Path("rows.json"), clone / "rows.json", own):
        path.write_text(content)
        with pytest.raises(BrokenFileError) as caught:
            read_rows(path)
        hint = f"git checkout -- {path} brings back what git has"
        assert (hint in str(caught.value)) is (path != own)
        assert (NEXT_STEP in str(caught.value)) is (path == own)


def test_without_git_nothing_is_said_of_it(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clone / "rows.json"
    path.write_text("{")
    monkeypatch.setenv("PATH", str(clone))
    with pytest.raises(BrokenFileError, match=NEXT_STEP):
        read_rows(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"schema": 3}', "its schema is 3, not 'sdopt-rows/1'"),
        ("{}", "its schema is missing"),
        ('{"schema": "sdopt-rows/1", "made_on": {}}', "rows is missing"),
        ('{"schema": "sdopt-rows/1", "made_on": [], "rows": []}', r"made_on is \[\], no object"),
        ('{"schema": "sdopt-rows/1", "made_on": {}, "rows": [{}]}', r"rows\[0\] is no object with"),
        (
            '{"schema": "sdopt-rows/1", "made_on": {}, "rows": [{"name": "a"}, {"name": "a"}]}',
            "two rows of the name 'a'",
        ),
        (
            '{"schema": "sdopt-rows/1", "made_on": {}, "rows": [{"name": "a", "ms": [1, NaN]}]}',
            r"row 'a': ms\[1\] is no finite number",
        ),
    ],
)
def test_what_is_wrong_is_told_by_its_field(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(BrokenFileError, match=says) as caught:
        read_rows(path)
    assert "Error(" not in str(caught.value)


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


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"made_on": {"device": "a card", "source": "here"}, "rows": []}, "has no rows"),
        ({"made_on": {"source": "here"}, "rows": [{"name": "a"}]}, "made_on: device is missing"),
        ({"made_on": {"device": "a card", "source": 3}, "rows": [{"name": "a"}]}, "source is 3"),
    ],
)
@pytest.mark.parametrize("study", ["throughput", "peers"])
def test_no_table_is_shown_of_nothing_or_of_an_unknown_machine(
    study: str,
    content: dict[str, Any],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "rows.json"
    recipe = {"recipe": "one", "ground": "here", "work": "all of it", "error": "it ended"}
    rows = [{**row, "level": {"name": "x"}, "batch": 1, **recipe} for row in content["rows"]]
    path.write_text(json.dumps({"schema": SCHEMA, **content, "rows": rows}))
    shown = (
        throughput.main(["--show", "--json", str(path)])
        if study == "throughput"
        else (peers.main([str(path)]))
    )
    assert shown == 2
    assert says in capsys.readouterr().err
