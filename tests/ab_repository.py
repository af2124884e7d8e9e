"""Small git repositories and processes for the tests of A/B runs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@example.org")
WAIT_S = 30.0


def git(folder: Path, *arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    command = ("git", "-C", str(folder), *IDENTITY, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


def commit_all(folder: Path, message: str) -> str:
    """Commit everything, and give the commit's name."""
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def worktrees(folder: Path) -> list[str]:
    listed = git(folder, "worktree", "list", "--porcelain").splitlines()
    return [line.split(" ", 1)[1] for line in listed if line.startswith("worktree ")]


def is_running(pid: int) -> bool:
    """Whether the process lives; one that only waits to be reaped does not."""
    shown = subprocess.run(("ps", "-o", "stat=", "-p", str(pid)), capture_output=True, text=True)
    return bool(shown.stdout.strip()) and not shown.stdout.strip().startswith("Z")


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()
