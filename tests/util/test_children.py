"""A child process finds this package first, then what its parent was given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdopt.util.children import OWN_TREE, python_path


def test_this_tree_comes_first_and_what_was_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/one" + os.pathsep + "/two")
    assert python_path().split(os.pathsep) == [str(OWN_TREE), "/one", "/two"]
    assert python_path(Path("/other")).split(os.pathsep)[0] == "/other"
    assert (OWN_TREE / "sdopt" / "util" / "children.py").exists()


@pytest.mark.parametrize("given", ["", None])
def test_nothing_given_leaves_no_empty_entry(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty entry would be the current folder."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if given is not None:
        monkeypatch.setenv("PYTHONPATH", given)
    assert python_path() == str(OWN_TREE)
