"""Each worked change of CONTRIBUTING.md fits the code, stays in its files, and passes its tests."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(diff|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+(?:\\?\.\d+)?")
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "site", "*.egg-info", "build", "dist")
CHANGES = {
    "Change a level's cutoff": r"sdopt/levels\.py",
    "Change an SSIM limit": r"baselines/images/embedded/limits\.json",
    "Add a column to the ladder table": r"sdopt/bench/metrics/\w+\.py",
    "Add a metric": r"sdopt/bench/metrics/\w+\.py|tests/bench/metrics/\w+\.py",
    "Add a kernel for another GPU family": r"sdopt/engine/\w+\.py",
    "Add a fault to the self-test": r"sdopt/bench/faults/\w+\.py",
}
"""The files that a change may touch, by its heading."""
MOST_FILES = {"Add a metric": 2, "Add a kernel for another GPU family": 3}
"""Of a change that is more than one file."""


@dataclass(frozen=True)
class Hunk:
    """A place of a file: its lines before and after the change."""

    file: str
    old: str
    new: str

    def applied(self, text: str) -> str:
        """The text with the change, or as it is if that was made for real already.

        The old lines are found whatever their numbers are: a value moves, the diff stays.
        """
        adds = self.new.count("\n") > self.old.count("\n")
        if self.new in text or (adds and whatever_its_numbers(self.new).search(text)):
            return text
        found = whatever_its_numbers(self.old).findall(text)
        assert len(found) == 1, f"{self.file} has it {len(found)} times: {self.old}"
        return text.replace(found[0], self.new)


def whatever_its_numbers(lines: str) -> re.Pattern[str]:
    """A pattern of the lines in which any number may be another one."""
    parts = NUMBER.split(re.escape(lines))
    return re.compile("^" + r"\d+(?:\.\d+)?".join(parts), re.MULTILINE)


def section(heading: str) -> str:
    return CONTRIBUTING.split(f"### {heading}\n")[1].split("\n### ")[0].split("\n## ")[0]


def hunks(text: str) -> Iterator[Hunk]:
    """Every hunk of the diffs in a text; of a new file the old lines are empty."""
    for kind, diff in FENCE.findall(text):
        file = ""
        for part in re.split(r"^(?=--- |@@)", diff, flags=re.MULTILINE) if kind == "diff" else ():
            if found := re.search(r"^\+\+\+ b/(\S+)$", part, re.MULTILINE):
                file = found.group(1)
            elif part.startswith("@@"):
                lines = part.splitlines(keepends=True)[1:]
                old, new = (
                    "".join(line[1:] or "\n" for line in lines if line[0] != sign) for sign in "+-"
                )
                yield Hunk(file, old, new)


def commands(text: str) -> list[list[str]]:
    return [
        shlex.split(line)
        for kind, code in FENCE.findall(text)
        if kind == "sh"
        for line in code.splitlines()
    ]


def apply(tree: Path, heading: str) -> None:
    for hunk in hunks(section(heading)):
        path = tree / hunk.file
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(hunk.applied(text) if hunk.old else hunk.new, encoding="utf-8")


def run(tree: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """One of the page's commands in that copy, with this Python and nothing of this tree."""
    module = ["-m"] if command[0] == "pytest" else []
    arguments = [*module, *command] if module else command[1:]
    quiet = ["-p", "no:cacheprovider", "-q"] if module else []
    return subprocess.run(
        [sys.executable, *arguments, *quiet],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository without what git and tools keep in it."""
    tree = tmp_path_factory.mktemp("copy") / "sdopt"
    shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
    return tree


@pytest.fixture
def copy(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "sdopt"))


def test_each_diff_of_the_page_is_of_a_worked_change() -> None:
    assert sum(len(list(hunks(section(name)))) for name in CHANGES) == len([*hunks(CONTRIBUTING)])


@pytest.mark.parametrize("heading", CHANGES)
def test_a_worked_change_stays_where_it_should(heading: str) -> None:
    changed = {hunk.file for hunk in hunks(section(heading))}
    assert changed
    assert [file for file in changed if not re.fullmatch(CHANGES[heading], file)] == []
    assert len(changed) <= MOST_FILES.get(heading, 1)
    assert commands(section(heading))


@pytest.mark.parametrize("heading", CHANGES)
def test_the_old_lines_of_a_worked_change_are_in_the_code(heading: str) -> None:
    for hunk in hunks(section(heading)):
        if hunk.old:
            hunk.applied((ROOT / hunk.file).read_text(encoding="utf-8"))


def test_old_lines_are_found_after_a_value_moved_and_not_after_a_name_did() -> None:
    hunk = Hunk("levels.py", "a = then(\n    cutoff=0.4,\n", "a = then(\n    cutoff=0.3,\n")
    assert hunk.applied("a = then(\n    cutoff=0.35,\n)\n") == "a = then(\n    cutoff=0.3,\n)\n"
    assert hunk.applied(hunk.new) == hunk.new
    with pytest.raises(AssertionError, match=r"levels\.py has it 0 times"):
        hunk.applied("b = then(\n    cutoff=0.4,\n")


@pytest.mark.slow
@pytest.mark.parametrize("heading", CHANGES)
def test_a_worked_change_passes_the_tests_that_it_names(heading: str, copy: Path) -> None:
    apply(copy, heading)
    for command in commands(section(heading)):
        done = run(copy, command)
        assert done.returncode == 0, (
            f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-2000:]}"
        )


@pytest.mark.slow
def test_a_worked_change_that_breaks_something_is_seen(copy: Path) -> None:
    levels = copy / "sdopt" / "levels.py"
    levels.write_text(levels.read_text(encoding="utf-8").replace("cfg_cutoff=0.4", "steps=12"))
    done = run(copy, ["pytest", "tests/test_levels.py"])
    assert done.returncode == 1
    assert "test_a_level_is_its_published_row" in done.stdout
