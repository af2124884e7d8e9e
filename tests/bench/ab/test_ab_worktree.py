"""A base revision is checked out, and nothing of it is left, however the run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ab_repository import commit_all, eventually, git, is_running, worktrees

from sdopt.bench.ab import checked_out, commit_of
from sdopt.bench.ab.janitor import told
from sdopt.errors import RevisionError

HOLDER = """
import signal, subprocess, sys, threading, time
from pathlib import Path
from sdopt.bench.ab import checked_out
from sdopt.bench.ab.cleanup import janitor

# A test run in the background of a shell script inherits that Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
with checked_out(Path(sys.argv[1]), "v1") as tree, janitor() as keeper:
    worker = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], cwd=tree, start_new_session=True
    )
    keeper.guard(worker.pid)
    threading.Thread(target=worker.wait, daemon=True).start()
    print(tree, worker.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits, of which the first is tagged v1, and an uncommitted change."""
    folder = tmp_path / "repository"
    (folder / "part").mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "part" / "file").write_text("one")
    commit_all(folder, "one")
    git(folder, "tag", "v1")
    (folder / "part" / "file").write_text("two")
    commit_all(folder, "two")
    (folder / "part" / "file").write_text("three")
    return folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary folders are made; empty again at the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    assert list(folder.iterdir()) == []


def test_the_tree_is_that_of_the_revision_and_goes_away(repository: Path, temporary: Path) -> None:
    with checked_out(repository, "v1") as tree:
        assert tree.parent == temporary
        assert tree.name.startswith("sdopt-ab-")
        assert (tree / "part" / "file").read_text() == "one"
        assert sorted(path.name for path in tree.iterdir()) == ["part"]
        assert worktrees(repository) == [str(repository)]
        (tree / "made by a run").write_text("x")
    assert worktrees(repository) == [str(repository)]
    assert (repository / "part" / "file").read_text() == "three"


def test_a_folder_below_the_top_gives_the_same_folder(repository: Path, temporary: Path) -> None:
    with checked_out(repository / "part", "HEAD") as tree:
        assert tree.parent.parent == temporary
        assert (tree / "file").read_text() == "two"


def test_an_error_inside_comes_through_and_the_tree_goes_away(
    repository: Path, temporary: Path
) -> None:
    with pytest.raises(ZeroDivisionError), checked_out(repository, "HEAD"):
        raise ZeroDivisionError
    assert worktrees(repository) == [str(repository)]


def test_variables_and_hooks_of_git_do_not_lead_astray(
    repository: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = repository / ".git" / "hooks" / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {repository}/hooked\n")
    hook.chmod(0o755)
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere")
    with checked_out(repository, "main~1") as tree:
        assert (tree / "part" / "file").read_text() == "one"
    assert not (repository / "hooked").exists()


def test_records_of_other_worktrees_are_left_alone(repository: Path, temporary: Path) -> None:
    other = repository.parent / "other"
    git(repository, "worktree", "add", "--quiet", "--detach", str(other))
    away = other.rename(repository.parent / "unmounted")
    with checked_out(repository, "v1"):
        pass
    assert str(other) in worktrees(repository)
    away.rename(other)


def test_a_revision_is_resolved_to_its_commit(repository: Path) -> None:
    commit = git(repository, "rev-parse", "v1")
    assert [commit_of(repository, name) for name in ("v1", "main~1", commit[:8])] == [commit] * 3


@pytest.mark.parametrize("revision", ["v9", "", "--all", "HEAD:part/file", "a b", "v1\n"])
def test_an_unknown_revision_is_named_with_what_to_do(
    revision: str, repository: Path, temporary: Path
) -> None:
    with pytest.raises(RevisionError) as caught, checked_out(repository, revision):
        pass
    message = str(caught.value)
    for words in (repr(revision), str(repository), "a branch, a tag or a commit", "fetch"):
        assert words in message


@pytest.mark.parametrize("folder", ["plain", "missing"])
def test_a_folder_outside_any_repository_is_named(
    folder: str, tmp_path: Path, temporary: Path
) -> None:
    (tmp_path / "plain").mkdir()
    with pytest.raises(RevisionError, match=r"is not in a git working tree.*run it in a clone"):
        commit_of(tmp_path / folder, "HEAD")


def test_a_base_without_the_folder_is_refused(repository: Path, temporary: Path) -> None:
    (repository / "new").mkdir()
    with (
        pytest.raises(RevisionError, match="'v1' has no folder new"),
        checked_out(repository / "new", "v1"),
    ):
        pass
    assert worktrees(repository) == [str(repository)]


def test_what_git_cannot_check_out_is_told_in_its_words(repository: Path, temporary: Path) -> None:
    git(repository, "config", "filter.broken.smudge", "false")
    git(repository, "config", "filter.broken.required", "true")
    (repository / ".git" / "info" / "attributes").write_text("* filter=broken\n")
    with (
        pytest.raises(RevisionError, match=r"(?s)'v1' cannot be checked out.*filter broken"),
        checked_out(repository, "v1"),
    ):
        pass


def test_a_missing_git_is_named(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RevisionError, match=r"no git command here.*install git"):
        commit_of(repository, "v1")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_no_worktree_no_folder_and_no_worker(
    number: signal.Signals, repository: Path, temporary: Path
) -> None:
    holder = subprocess.Popen(
        (sys.executable, "-c", HOLDER, str(repository)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        tree, pid = holder.stdout.readline().split()
        assert os.path.exists(tree)
        assert is_running(int(pid))
        holder.send_signal(number)
        holder.wait()
    assert eventually(lambda: not is_running(int(pid)))
    assert eventually(lambda: not os.path.exists(tree))
    assert worktrees(repository) == [str(repository)]


def test_a_run_killed_while_it_checks_out_leaves_nothing(repository: Path, temporary: Path) -> None:
    slow = "sleep 1; cat"  # git runs it on each file of a checkout
    git(repository, "config", "filter.slow.smudge", slow)
    (repository / ".git" / "info" / "attributes").write_text("* filter=slow\n")
    holder = subprocess.Popen((sys.executable, "-c", HOLDER, str(repository)))
    assert eventually(lambda: any(temporary.glob("*/.sdopt-index*")))
    holder.kill()
    holder.wait()
    assert eventually(lambda: list(temporary.iterdir()) == [])
    assert worktrees(repository) == [str(repository)]


def test_a_group_is_forgotten_and_a_line_cut_short_is_not_taken_at_its_word() -> None:
    lines = ['["kill", 12]\n', '["kill", 34]\n', '["spare", 12]\n', '["remove", "/x"]\n']
    assert told([*lines, '["kill", 5']) == [("kill", 34), ("remove", "/x")]
    assert told([*lines, '["kill", 56]\n'])[-1] == ("kill", 56)
