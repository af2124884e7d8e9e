"""Two launches in one folder: the second is refused by name, a killed one blocks nobody."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import stub_evaluation as stub
from filelock import FileLock

from sdopt.bench.evaluation import holding
from sdopt.bench.evaluation.holding import HOLDER, held
from sdopt.bench.evaluation.places import Bucket, Folder
from sdopt.errors import BusyError, SdoptError

SCRIPT = """
import sys
from pathlib import Path
from sdopt.bench.evaluation.holding import held
from sdopt.bench.evaluation.places import Folder

with held(Folder(Path(sys.argv[1])), print):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder_of(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds it until its input ends."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen(command, text=True, **pipes)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    return other


def test_a_second_launch_is_refused_by_name_and_changes_nothing(tmp_path: Path) -> None:
    other = holder_of(tmp_path)
    with pytest.raises(BusyError) as refused:
        stub.run(stub.of(6), tmp_path)
    told = f"process {other.pid} on {re.escape(socket.gethostname())}, since 20"
    assert re.search(told, str(refused.value))
    assert "name another --out" in str(refused.value)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", HOLDER}
    other.communicate()
    stub.run(stub.of(6), tmp_path)


def test_a_killed_holder_blocks_nobody(tmp_path: Path) -> None:
    other = holder_of(tmp_path)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert (tmp_path / HOLDER).exists()  # its name stays, and means nothing
    stub.run(stub.of(6), tmp_path)
    assert not (tmp_path / HOLDER).exists()


def test_one_that_fails_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), held(Folder(tmp_path), print):
        raise KeyboardInterrupt
    stub.run(stub.of(6), tmp_path)


def test_one_that_has_only_begun_is_refused_too(tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(BusyError, match="has only begun"),
        held(Folder(tmp_path), print),
    ):
        pass


@pytest.mark.parametrize(
    "error", [NotImplementedError("flock"), OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))]
)
def test_where_there_are_no_locks_that_is_said(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(holding.FileLock, "acquire", refuse)
    told: list[str] = []
    stub.run(stub.of(6), tmp_path, say=told.append)
    assert "has no locks: do not start a second evaluation" in told[0]
    told.clear()
    with held(Bucket("memory://held"), told.append):
        assert "memory://held has no locks" in told[0]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(SdoptError, match="cannot be written"),
        held(Folder(tmp_path / "file"), print),
    ):
        pass
