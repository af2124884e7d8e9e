"""An accept that is killed is either whole or seen, and so is every file on its way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sdopt.bench.stored import limits
from sdopt.bench.stored.accepting import (
    FOLDER,
    check_settled,
    forget_settled,
    journal_path,
    mixture,
    store_together,
)
from sdopt.bench.stored.history import save_run
from sdopt.errors import BrokenFileError
from sdopt.util.files import write_whole
from sdopt.util.partial_files import held, is_held, remove_stale

OLD, NEW = b"old", b"new"
KILLED_ACCEPT = """
import os, signal, sys
from pathlib import Path
from sdopt.bench.stored import accepting
root, before_which = Path(sys.argv[1]), int(sys.argv[2])
write, written = accepting.write_whole, []
def until_killed(path, content):
    if len(written) == before_which:
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)
    written.append(path)
accepting.write_whole = until_killed
names = ("images/set/final/a.png", "latents/set/final/a.safetensors", "images/set/final/b.png")
accepting.store_together(root, "set", "final", {root / name: b"new" for name in names})
"""
NAMES = ("images/set/final/a.png", "latents/set/final/a.safetensors", "images/set/final/b.png")


def killed(code: str, *arguments: object) -> None:
    """Run a child process, which kills itself."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in NAMES:
        write_whole(tmp_path / name, OLD)
    return tmp_path


def contents(root: Path) -> set[bytes]:
    return {(root / name).read_bytes() for name in NAMES}


def accept(root: Path, content: bytes = NEW) -> None:
    store_together(root, "set", "final", {root / name: content for name in NAMES})


def test_an_accept_that_ends_leaves_no_journal(root: Path) -> None:
    accept(root)
    assert contents(root) == {NEW}
    assert not mixture(root, "set", "final")
    assert not (root / FOLDER).exists()
    check_settled(root, "set")


@pytest.mark.parametrize("writes", [0, 1])
def test_an_accept_killed_before_its_first_file_changed_nothing(writes: int, root: Path) -> None:
    """The first write is that of the journal."""
    killed(KILLED_ACCEPT, root, writes)
    assert contents(root) == {OLD}
    assert not mixture(root, "set", "final")
    assert forget_settled(root) == []
    assert not (root / FOLDER).exists()


@pytest.mark.parametrize("writes", [2, 3])
def test_an_accept_killed_in_between_is_named_until_it_is_mended(writes: int, root: Path) -> None:
    killed(KILLED_ACCEPT, root, writes)
    assert contents(root) == {OLD, NEW}
    errors = mixture(root, "set", "final")
    assert {error.path for error in errors.values()} == {
        root / "images/set/final",
        root / "latents/set/final",
    }
    journal = journal_path(root, "set", "final")
    for error in errors.values():
        assert f"level 'final' was interrupted, or is under way: {journal}" in str(error)
    with pytest.raises(BrokenFileError, match=r"was interrupted.*git checkout -- .*--sdopt-accept"):
        check_settled(root, "set")
    assert forget_settled(root) == [journal]


def test_what_was_stored_brought_back_is_whole(root: Path) -> None:
    killed(KILLED_ACCEPT, root, 2)
    for name in NAMES:
        (root / name).write_bytes(OLD)
    assert not mixture(root, "set", "final")
    assert forget_settled(root) == []
    assert not (root / FOLDER).exists()


def test_accepting_again_is_whole(root: Path) -> None:
    killed(KILLED_ACCEPT, root, 3)
    accept(root, b"newer")
    assert contents(root) == {b"newer"}
    assert not (root / FOLDER).exists()


def test_a_mixture_stays_one_when_the_next_accept_is_killed_at_once(root: Path) -> None:
    killed(KILLED_ACCEPT, root, 2)
    killed(KILLED_ACCEPT, root, 1)
    assert mixture(root, "set", "final")


def test_a_damaged_journal_is_named(root: Path) -> None:
    killed(KILLED_ACCEPT, root, 2)
    journal = journal_path(root, "set", "final")
    for content in ("", "[]", "{}", '{"files": {"a": 3}}', '{"files": [1]}'):
        journal.write_text(content)
        (error,) = mixture(root, "set", "final").values()
        assert str(journal) in str(error)
        assert forget_settled(root) == [journal]
    accept(root)
    assert not journal.exists()


def test_an_accept_under_way_keeps_its_journal(root: Path) -> None:
    journal = journal_path(root, "set", "final")
    files = {name: {"before": None, "after": None} for name in ("x", "y")}
    write_whole(journal, json.dumps({"files": files}).encode())
    with held(journal):
        assert forget_settled(root) == []
        assert journal.exists()
    forget_settled(root)
    assert not journal.exists()


def test_limits_are_not_measured_from_a_mixture(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed(KILLED_ACCEPT, root, 2)
    folder = root / "images" / "set"
    assert limits.main([str(folder), str(folder), "--made-by", "one machine"]) == 2
    assert "was interrupted" in capsys.readouterr().err


KILLED_WRITE = """
import os, signal, sys
from pathlib import Path
from sdopt.util import files
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
files.write_whole(Path(sys.argv[1]) / "limits.json", b"new")
"""
KILLED_SAVE = """
import os, signal, sys
from pathlib import Path
from sdopt.bench.stored import history
history.write_whole = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
history.save_run(Path(sys.argv[1]), "mine", {})
"""


@pytest.mark.parametrize("code", [KILLED_WRITE, KILLED_SAVE], ids=["a file", "a run's number"])
def test_what_a_killed_writer_left_is_removed(code: str, tmp_path: Path) -> None:
    killed(code, tmp_path)
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".partial"
    assert remove_stale(tmp_path.rglob("*.partial")) == [left]
    assert not [*tmp_path.iterdir()]
    assert save_run(tmp_path, "next", {}).name == "0001_next.json"


def test_a_living_writers_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "0001.partial"
    path.touch()
    with held(path):
        assert is_held(path)
        assert remove_stale([path]) == []
    assert remove_stale([path, tmp_path / "gone.partial"]) == [path]
