"""The program that cleans up after a run, however that ends; see `sdopt.bench.ab.cleanup`.

    janitor.py [REPOSITORY COMMIT]

With arguments it checks the commit out into a temporary folder and answers with one JSON line on
stdout, {"folder": ...} or {"error": ...}. Then it reads lines from stdin, 'group 1234' and
'forget 1234', until end of file: that comes when its parent is done with it and also when its
parent is killed. Then it kills the process groups and removes the folder.

It is a process of its own because nothing survives SIGKILL inside of one, and it makes the folder
itself because then there is no moment at which a folder exists that nobody would remove.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress

GONE_WITHIN_S = 5.0
"""How long to wait for killed processes, which may still be writing into the folder."""


def main(arguments: list[str]) -> int:
    """Do the work; the exit status is 1 if something could not be removed."""
    # A terminal's Ctrl-C and a runner's SIGTERM often reach the whole tree of processes.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    folder = check_out(*arguments) if arguments else None
    for group in sorted(groups_left(sys.stdin)):
        end_group(group)
    return int(folder is not None and not remove(arguments[0], folder))


def check_out(repository: str, commit: str) -> str:
    """Make the worktree and say where it is, or why there is none."""
    folder = os.path.realpath(tempfile.mkdtemp(prefix="sdopt-ab-"))
    done = git(repository, "worktree", "add", "--detach", folder, commit)
    if done.returncode == 0:
        answer({"folder": folder})
    else:
        answer({"error": done.stderr.strip()})
    return folder


def answer(message: dict[str, str]) -> None:
    """Write one line to the parent, which may be gone already."""
    with suppress(OSError):
        os.write(1, json.dumps(message).encode() + b"\n")


def groups_left(lines: Iterable[str]) -> set[int]:
    """The process groups that were told of and not forgotten again when the lines end."""
    groups: set[int] = set()
    for line in lines:
        word, _, number = line.partition(" ")
        if not line.endswith("\n"):
            break  # cut off with its writer: the number may be another group's
        if word == "group":
            groups.add(int(number))
        elif word == "forget":
            groups.discard(int(number))
    return groups


def end_group(group: int) -> None:
    """Kill the process group and wait until it is gone."""
    deadline = time.monotonic() + GONE_WITHIN_S
    with suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < deadline:
            os.killpg(group, signal.SIGKILL)
            time.sleep(0.02)


def remove(repository: str, folder: str) -> bool:
    """Whether the worktree is gone, the folder and git's record of it."""
    deadline = time.monotonic() + GONE_WITHIN_S
    git(repository, "worktree", "remove", "--force", "--force", folder)
    while os.path.exists(folder) and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.02)
    if is_registered(repository, folder):
        # Not always: it also drops the records of other worktrees whose disk is away right now.
        git(repository, "worktree", "prune")
    return not os.path.exists(folder) and not is_registered(repository, folder)


def is_registered(repository: str, folder: str) -> bool:
    """Whether git knows of a worktree in that folder."""
    listed = git(repository, "worktree", "list", "--porcelain").stdout.splitlines()
    return f"worktree {folder}" in listed


def git(repository: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git there, without the repository's hooks and apart from this program's stdin."""
    command = ("git", "-C", repository, "-c", f"core.hooksPath={os.devnull}", *arguments)
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
