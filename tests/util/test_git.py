"""Git is the next step for a damaged file that it has, and for no other."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sdopt.util.files import damaged
from sdopt.util.git import is_tracked


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "repository"
    (root / "folder").mkdir(parents=True)
    for name in ("has", "folder/[has]", "has not"):
        (root / name).write_text("{")
    for command in (("init", "-q"), ("--literal-pathspecs", "add", "has", "folder/[has]")):
        subprocess.run(("git", *command), check=True, cwd=root)
    monkeypatch.chdir(root)
    return root


@pytest.mark.parametrize("name", ["has", "folder/[has]", "has not", "gone"])
def test_what_it_has_comes_back(name: str, repository: Path) -> None:
    has = name.endswith(("has", "[has]"))
    for path in (Path(name), repository / name):
        assert is_tracked(path) is has
        told = str(damaged(path, "is damaged"))
        hint = f"git checkout -- {path} brings back what git has"
        assert told.endswith(hint if has else "remove it, or put a sound one there")
        assert told.startswith(f"{path} is damaged; it was left as it is; ")


def test_another_repository_has_nothing_of_this_one(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_tracked(repository / "has")
    assert is_tracked(repository / "has", folder=repository)


def test_without_git_nothing_is_tracked(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert not is_tracked(repository / "has")
