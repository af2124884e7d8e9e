"""The README names every option and every level."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sdopt.bench import plugin
from sdopt.levels import LEVELS

README = Path(__file__).parents[1] / "README.md"


class Recorder:
    """Stands for pytest's parser and its group, and notes the options."""

    def __init__(self) -> None:
        self.options: list[str] = []

    def getgroup(self, *_: Any) -> Recorder:
        return self

    def addoption(self, name: str, **_: Any) -> None:
        self.options.append(name)


def plugin_options() -> list[str]:
    """The names of the options that the plugin adds."""
    recorder = Recorder()
    plugin.pytest_addoption(recorder)  # type: ignore[arg-type]
    return recorder.options


def test_the_options_share_one_prefix_and_are_few() -> None:
    options = plugin_options()
    assert [name for name in options if not name.startswith("--sdopt-")] == []
    assert 1 <= len(options) <= 7


def found_in_readme(pattern: str) -> set[str]:
    return set(re.findall(pattern, README.read_text(encoding="utf-8")))


def test_every_option_stands_in_the_readme_and_no_other() -> None:
    assert found_in_readme(r"--sdopt-[\w-]+") == set(plugin_options())


def test_every_level_stands_in_the_readme() -> None:
    as_code_or_table_cell = found_in_readme(r"(?<=[`|]) *([a-z0-9-]+) *(?=[`|])")
    assert set(LEVELS) - as_code_or_table_cell == set()
