"""What the job that may write takes from another machine: baselines by their names, or nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("take", ROOT / ".ci" / "take_baselines.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TAKE = _module()


def test_the_baselines_of_this_repository_are_all_taken_and_none_is_new() -> None:
    assert TAKE.take(ROOT / "baselines", ROOT / "baselines") == []


def test_what_is_new_is_copied_and_the_rest_stays(tmp_path: Path) -> None:
    source, target = tmp_path / "from", tmp_path / "into"
    for name, text in {"work/a.json": "{}", "history/gpu/a/0001_x.json": "1"}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    (target / "work").mkdir(parents=True)
    (target / "work" / "b.json").write_text("kept")
    assert [str(one) for one in TAKE.take(source, target)] == [
        "history/gpu/a/0001_x.json",
        "work/a.json",
    ]
    assert TAKE.take(source, target) == []
    assert (target / "work" / "b.json").read_text() == "kept"


@pytest.mark.parametrize(
    "name",
    [
        "conftest.py",
        "images/a/final/x.py",
        ".github/workflows/x.yml",
        "history/gpu/a/x.json",
        "images/.git/final/x.png",
    ],
)
def test_anything_else_is_refused_before_a_file_is_written(name: str, tmp_path: Path) -> None:
    source, target = tmp_path / "from", tmp_path / "into"
    (source / "work").mkdir(parents=True)
    (source / "work" / "a.json").write_text("{}")
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_text("x")
    with pytest.raises(ValueError, match="nothing that is stored"):
        TAKE.take(source, target)
    assert not target.exists()


def test_a_link_and_a_file_that_is_too_large_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "work"
    source.mkdir()
    (source / "a.json").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="is a link"):
        TAKE.take(tmp_path, tmp_path / "into")
    (source / "a.json").unlink()
    (source / "a.json").write_text("{}")
    monkeypatch.setattr(TAKE, "MOST_BYTES", 1)
    with pytest.raises(ValueError, match="larger than"):
        TAKE.take(tmp_path, tmp_path / "into")
