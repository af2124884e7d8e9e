"""The table of threats: each test that it names exists, and what is open is known to be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "threats.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
WAYS_IN = ("fork", "artifact", "compile cache", "JSON", "pickle", "prompt file", "HTTP", "report")
OPEN: set[str] = set()
"""Ways in that do not exist yet; whoever builds one names its tests."""


def rows(text: str) -> dict[str, tuple[str, str]]:
    """What stops it, and what shows that, by the way in."""
    lines = re.findall(r"^\| (.+?) \| .+? \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    return {way: (stops, shown) for way, stops, shown in lines if way != "way in"}


def missing_tests(text: str) -> list[str]:
    """The tests that a text names and nobody wrote."""
    return [
        f"{file}::{name}"
        for file, name in TEST.findall(text)
        if not (ROOT / file).is_file() or f"def {name}(" not in (ROOT / file).read_text()
    ]


ROWS = rows(PAGE.read_text(encoding="utf-8"))


def test_every_way_in_of_the_project_is_told() -> None:
    assert [word for word in WAYS_IN if not any(word in way for way in ROWS)] == []


@pytest.mark.parametrize("way", ROWS)
def test_each_threat_names_a_test_that_exists_or_is_known_to_be_open(way: str) -> None:
    stops, shown = ROWS[way]
    assert stops.startswith("open: ") == (way in OPEN)
    assert bool(TEST.findall(shown)) == (way not in OPEN)
    assert missing_tests(shown) == []


def test_a_test_that_nobody_wrote_is_seen() -> None:
    text = "| a | b | c | `tests/test_threats.py::test_none`, `tests/no.py::test_a` |"
    assert missing_tests(text) == ["tests/test_threats.py::test_none", "tests/no.py::test_a"]
    assert list(rows(text)) == ["a"]


def test_the_job_that_is_printed_for_gitlab_is_the_sample() -> None:
    page = (ROOT / "docs" / "how-to" / "gate-on-gitlab.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```yaml\n(.+?)^```$", page, re.MULTILINE | re.DOTALL)
    sample = (ROOT / "docs" / "samples" / "gitlab-ci.yml").read_text(encoding="utf-8")
    assert yaml.safe_load(block) == yaml.safe_load(sample)


def test_the_level_that_is_printed_for_other_projects_is_one() -> None:
    """Every field that the page tells of is one of `OwnLevel`, and the other way round."""
    from dataclasses import fields

    from sdopt.bench.own.ladder import DECLARED, OwnLevel
    from sdopt.levels import Level

    page = (ROOT / "docs" / "how-to" / "gate-your-own-pipeline.md").read_text(encoding="utf-8")
    table = page.split("## What a level says")[1].split("##")[0]
    cells = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    told = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    inherited = {field.name for field in fields(Level)} - set(DECLARED)
    assert told == {field.name for field in fields(OwnLevel)} - inherited
    [code] = [one for one in re.findall(r"```python\n(.+?)```", page, re.DOTALL) if "Ladder" in one]
    names: dict[str, object] = {}
    exec(code.replace("from studio import load  # your code", "load = print"), names)
    assert [level.name for level in names["pytest_sdopt_ladder"]().levels] == ["careful", "quick"]  # type: ignore[operator]
