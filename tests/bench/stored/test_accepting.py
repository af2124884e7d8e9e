"""An accept that is killed is whole or has not begun, and so is every file on its way."""

from __future__ import annotations

import errno
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from killing import killed_everywhere

from sdopt.bench.stored import limits
from sdopt.bench.stored.accepting import (
    FOLDER,
    check_settled,
    digest,
    digest_of,
    journal_path,
    mixture,
    recover,
    store_together,
)
from sdopt.bench.stored.baselines import load_work
from sdopt.bench.stored.history import save_run
from sdopt.errors import BrokenFileError, BusyError, SdoptError
from sdopt.util.files import write_whole
from sdopt.util.partial_files import SUFFIX, held, is_held, remove_stale
from sdopt.util.writing import writing

OLD, NEW = b"old", b"new"
NAMES = ("images/set/final/a.png", "latents/set/final/a.safetensors", "images/set/final/b.png")
ACT = f"""
from sdopt.bench.stored.accepting import store_together
def act(root):
    store_together(root, "set", "final", {{root / name: b"new" for name in {NAMES}}})
"""
KILLED_ACCEPT = """
import os, signal, sys
from pathlib import Path
from sdopt.bench.stored import accepting
root, renames = Path(sys.argv[1]), 0
def hook(event, arguments):
    global renames
    if event == "os.rename" and "unfinished" not in str(arguments[1]):
        if renames == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        renames += 1
sys.addaudithook(hook)
names = ("images/set/final/a.png", "latents/set/final/a.safetensors", "images/set/final/b.png")
accepting.store_together(root, "set", "final", {root / name: b"new" for name in names})
"""


def killed(code: str, *arguments: object) -> None:
    """Run a child process, which kills itself."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in NAMES:
        write_whole(tmp_path / "store" / name, OLD)
    return tmp_path / "store"


def contents(root: Path) -> set[bytes]:
    return {(root / name).read_bytes() for name in NAMES}


def accept(root: Path, content: bytes = NEW) -> None:
    store_together(root, "set", "final", {root / name: content for name in NAMES})


def files(root: Path) -> set[str]:
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    return found - {".lock"}  # of a killed writer: the kernel let it go, and the next one takes it


def test_an_accept_that_ends_leaves_no_journal(root: Path) -> None:
    accept(root)
    assert contents(root) == {NEW}
    assert not mixture(root, "set", "final")
    assert not (root / FOLDER).exists()
    assert not [*root.rglob(".lock")]
    check_settled(root, "set")


def test_killed_at_any_moment_it_is_old_or_new_as_a_whole(root: Path, tmp_path: Path) -> None:
    """The journal is what decides: without it nothing has changed, with it all of it will."""
    folders = killed_everywhere(root, tmp_path / "killed", ACT)
    outcomes = []
    for folder in folders:
        had_journal = journal_path(folder, "set", "final").exists()
        before = contents(folder)
        found = recover(folder)
        assert found.left == []
        assert bool(found.completed) is (before == {OLD, NEW})
        remove_stale(folder.rglob(f"*{SUFFIX}"))
        assert len(contents(folder)) == 1
        assert had_journal or contents(folder) == before
        assert files(folder) == {*NAMES}
        outcomes.append(contents(folder).pop())
        accept(folder, b"newer")
        assert contents(folder) == {b"newer"}
        assert files(folder) == {*NAMES}
    assert outcomes == sorted(outcomes, reverse=True)  # old until some moment, new from then on
    assert outcomes.count(OLD) > 5
    assert outcomes.count(NEW) > 5


@pytest.mark.parametrize("renames", [1, 2])
def test_what_cannot_be_completed_is_named_until_it_is_mended(renames: int, root: Path) -> None:
    """Somebody has written into one of the files meanwhile: neither of both may be lost."""
    killed(KILLED_ACCEPT, root, renames)
    assert contents(root) == {OLD, NEW}
    (root / NAMES[2]).write_bytes(b"of somebody else")
    journal = journal_path(root, "set", "final")
    assert recover(root).left == [journal]
    errors = mixture(root, "set", "final")
    assert {error.path for error in errors.values()} == {
        root / "images/set/final",
        root / "latents/set/final",
    }
    for error in errors.values():
        assert f"level 'final' was interrupted, or is under way: {journal}" in str(error)
    with pytest.raises(BrokenFileError, match=r"was interrupted.*git checkout -- .*--sdopt-accept"):
        check_settled(root, "set")
    assert (root / NAMES[2]).read_bytes() == b"of somebody else"


def test_what_was_stored_brought_back_is_whole(root: Path) -> None:
    killed(KILLED_ACCEPT, root, 2)
    for name in NAMES:
        (root / name).write_bytes(OLD)
    assert not mixture(root, "set", "final")
    assert recover(root).completed == []
    assert contents(root) == {OLD}
    assert not (root / FOLDER).exists()


def test_accepting_again_is_whole(root: Path) -> None:
    killed(KILLED_ACCEPT, root, 2)
    accept(root, b"newer")
    assert contents(root) == {b"newer"}
    assert not (root / FOLDER).exists()


def test_a_mixture_stays_one_when_the_next_accept_is_killed_at_once(root: Path) -> None:
    killed(KILLED_ACCEPT, root, 1)
    shutil.rmtree(journal_path(root, "set", "final").with_suffix(""))
    killed(KILLED_ACCEPT, root, 0)
    assert mixture(root, "set", "final")


def test_a_damaged_journal_is_named(root: Path) -> None:
    killed(KILLED_ACCEPT, root, 2)
    journal = journal_path(root, "set", "final")
    for content in ("", "[]", "{}", '{"files": {"a": 3}}', '{"files": [1]}'):
        journal.write_text(content)
        (error,) = mixture(root, "set", "final").values()
        assert str(journal) in str(error)
        assert recover(root).left == [journal]
    accept(root)
    assert not journal.exists()


@pytest.mark.parametrize("name", ["../../outside", "{tmp}/outside"])
def test_a_journal_of_somebody_else_writes_nowhere_else(
    name: str, root: Path, tmp_path: Path
) -> None:
    """Anybody may commit one: what it names outside of the folder of the baselines stays."""
    inner = tmp_path / "clone" / "baselines"
    shutil.copytree(root, inner)
    journal, evil = journal_path(inner, "set", "final"), digest(b"evil")
    names = [NAMES[0], name.format(tmp=tmp_path)]
    entries = {one: {"before": digest_of(inner / one), "after": evil} for one in names}
    write_whole(journal, json.dumps({"levels": ["final"], "files": entries}).encode())
    for number in range(2):
        write_whole(journal.with_suffix("") / str(number), b"evil")
    (inner / NAMES[0]).write_bytes(b"evil")
    assert recover(inner).left == [journal]
    assert not (tmp_path / "outside").exists()


def test_a_journal_of_before_is_read(root: Path) -> None:
    """Those held digests of one level and no files that wait."""
    journal = journal_path(root, "set", "final")
    entries = {name: {"before": digest(OLD), "after": digest(NEW)} for name in NAMES}
    write_whole(journal, json.dumps({"level": "final", "files": entries}).encode())
    (root / NAMES[0]).write_bytes(NEW)
    assert mixture(root, "set", "final")
    assert recover(root).left == [journal]


def test_an_accept_under_way_keeps_its_journal(root: Path) -> None:
    journal = journal_path(root, "set", "final")
    entries = {name: {"before": None, "after": None} for name in ("x", "y")}
    write_whole(journal, json.dumps({"files": entries}).encode())
    with writing(root):
        assert recover(root).left == []
        assert journal.exists()
    recover(root)
    assert not journal.exists()


WRITER = """
import sys
from pathlib import Path
from sdopt.bench.stored.accepting import store_together
from sdopt.bench.stored.baselines import save_work
from sdopt.bench.stored.history import save_run
root, name = Path(sys.argv[1]), sys.argv[2]
for number in range(15):
    store_together(root, "set", "final", {root / one: name.encode() for one in ("a", "b", "c")})
    save_work(root / "work" / "set.json", f"{name}-{number}", {"tflop": 1.0})
    save_run(root / "history", name, {"by": name})
"""


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    command = (sys.executable, "-c", WRITER, str(tmp_path))
    writers = [subprocess.Popen((*command, name)) for name in ("one", "two", "three")]
    while any(writer.poll() is None for writer in writers):
        recover(tmp_path)  # as a run does that begins meanwhile
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert len({(tmp_path / name).read_bytes() for name in ("a", "b", "c")}) == 1
    assert len(load_work(tmp_path / "work" / "set.json")) == 45
    runs = sorted((tmp_path / "history").iterdir())
    assert [path.name[:4] for path in runs] == [f"{number:04}" for number in range(1, 46)]
    assert not (tmp_path / FOLDER).exists()


def test_a_writer_that_never_ends_is_named(tmp_path: Path) -> None:
    said = r"another process writes into .*\.lock"
    with writing(tmp_path), pytest.raises(BusyError, match=said), writing(tmp_path, patience_s=0):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of somebody")
    said = f"{tmp_path / 'file' / 'work'} cannot be written: Not a directory; make it writable"
    with pytest.raises(SdoptError, match=re.escape(said)), writing(tmp_path / "file" / "work"):
        raise AssertionError
    assert (tmp_path / "file").read_text() == "of somebody"


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


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    killed(KILLED_WRITE, tmp_path)
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".partial"
    assert remove_stale(tmp_path.rglob("*.partial")) == [left]
    assert not [*tmp_path.iterdir()]


def test_the_lock_of_a_killed_writer_holds_nobody_up(tmp_path: Path) -> None:
    killed(KILLED_SAVE, tmp_path)
    assert files(tmp_path) == set()
    assert save_run(tmp_path, "next", {}).name == "0001_next.json"
    assert [path.name for path in tmp_path.iterdir()] == ["0001_next.json"]


def test_a_living_writers_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "0001.partial"
    path.touch()
    with held(path):
        assert is_held(path)
        assert remove_stale([path]) == []
    assert remove_stale([path, tmp_path / "gone.partial"]) == [path]


# Places

OTHER_DEVICE = Path("/dev/shm")


@pytest.fixture
def apart(root: Path, tmp_path: Path) -> Iterator[Path]:
    """A clone whose baselines are a link to another file system; what `os.replace` says is real."""
    if not OTHER_DEVICE.is_dir() or OTHER_DEVICE.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    with tempfile.TemporaryDirectory(dir=OTHER_DEVICE) as name:
        shutil.copytree(root, Path(name, "store"))
        clone = tmp_path / "clone"
        clone.mkdir()
        (clone / "baselines").symlink_to(Path(name, "store"))
        (clone / "CHANGELOG.md").write_bytes(OLD)
        yield clone


def accept_with_log(clone: Path) -> None:
    places = [*(clone / "baselines" / name for name in NAMES), clone / "CHANGELOG.md"]
    store_together(clone / "baselines", "set", "final", dict.fromkeys(places, NEW))


def test_a_file_on_another_file_system_is_stored_together_with_the_others(apart: Path) -> None:
    accept_with_log(apart)
    assert (apart / "CHANGELOG.md").read_bytes() == NEW
    assert contents(apart / "baselines") == {NEW}
    assert not (apart / "baselines" / FOLDER).exists()


ACT_APART = f"""
import os, errno
from pathlib import Path
from sdopt.bench.stored import accepting
real = Path.replace
def replace(self, target):
    if "{FOLDER}" in str(self) and Path(target).name == "CHANGELOG.md":
        raise OSError(errno.EXDEV, "Invalid cross-device link", str(self), None, str(target))
    return real(self, target)
Path.replace = replace
def act(clone):
    files = {{clone / "baselines" / name: b"new" for name in {NAMES}}}
    files[clone / "CHANGELOG.md"] = b"new"
    accepting.store_together(clone / "baselines", "set", "final", files)
"""


def test_killed_at_any_moment_beside_another_file_system(root: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(root, clone / "baselines")
    (clone / "CHANGELOG.md").write_bytes(OLD)
    outcomes = []
    for folder in killed_everywhere(clone, tmp_path / "killed", ACT_APART):
        inner = folder / "baselines"
        assert recover(inner).left == []
        (both,) = contents(inner) | {(folder / "CHANGELOG.md").read_bytes()}
        outcomes.append(both)
        remove_stale(folder.rglob(f"*{SUFFIX}"))
        assert files(inner) == {*NAMES}
    assert outcomes == sorted(outcomes, reverse=True)
    assert outcomes.count(NEW) > 6  # before each rename of the four, and what clears up


@pytest.mark.parametrize("mode", ["read-only", "a folder", "outside", "in a file", "of git"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is(
    mode: str, root: Path, tmp_path: Path
) -> None:
    log = root.parent / "CHANGELOG.md"
    log.write_bytes(OLD)
    clone = tmp_path / "clone"
    shutil.copytree(root, clone / "baselines")
    log = clone / "CHANGELOG.md"
    log.write_bytes(OLD)
    if mode == "read-only":
        log.chmod(0o444)
    elif mode == "a folder":
        log = clone / "docs"
        log.mkdir()
    elif mode == "outside":
        log = tmp_path / "elsewhere" / "CHANGELOG.md"
    elif mode == "in a file":
        log = clone / "CHANGELOG.md" / "CHANGELOG.md"
    else:
        log = clone / ".git" / "hooks" / "pre-commit"
    inner = clone / "baselines"
    before = files(clone)
    with pytest.raises(SdoptError, match="nothing was written"):
        store_together(inner, "set", "final", {**{inner / one: NEW for one in NAMES}, log: NEW})
    assert contents(inner) == {OLD}
    assert files(clone) == before


def test_a_link_to_a_file_of_the_clone_stays_one(root: Path, tmp_path: Path) -> None:
    inner = tmp_path / "clone" / "baselines"
    shutil.copytree(root, inner)
    log = inner.parent / "CHANGELOG.md"
    (inner.parent / "docs").mkdir()
    (inner.parent / "docs" / "changes.md").write_bytes(OLD)
    log.symlink_to("docs/changes.md")
    accept_with_log(inner.parent)
    assert log.is_symlink()
    assert (inner.parent / "docs" / "changes.md").read_bytes() == NEW


def test_a_clone_s_changelog_above_the_folder_of_the_baselines_is_completed(
    root: Path, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    (clone / ".git").mkdir(parents=True)
    inner, log = clone / "bench" / "baselines", clone / "CHANGELOG.md"
    shutil.copytree(root, inner)
    log.write_bytes(OLD)
    store_together(inner, "set", "final", {**{inner / one: NEW for one in NAMES}, log: NEW})
    assert log.read_bytes() == NEW


def test_what_fails_on_its_way_is_completed_when_that_is_mended(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failing = Path.replace, [True]

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name == "b.png" and failing:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    said = (
        r"b\.png cannot be written: No space left on device; .* completes them from .*final\.json"
    )
    with pytest.raises(SdoptError, match=said):
        accept(root)
    assert recover(root).left == [journal_path(root, "set", "final")]  # it fails still
    failing.clear()
    assert recover(root).completed == [journal_path(root, "set", "final")]
    assert contents(root) == {NEW}


def test_old_files_brought_back_undo_the_new_ones(root: Path) -> None:
    """Git brings back what it has; a file that there was not stands alone then."""
    killed(KILLED_ACCEPT, root, 2)
    journal = journal_path(root, "set", "final")
    told = json.loads(journal.read_text())
    told["files"][NAMES[0]]["before"] = None
    journal.write_text(json.dumps(told))
    (root / NAMES[1]).write_bytes(OLD)
    assert recover(root).undone == [journal]
    assert not (root / NAMES[0]).exists()
    assert not journal.exists()
