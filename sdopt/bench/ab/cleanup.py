"""This process's end of the janitor, the small process that cleans up even after SIGKILL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("janitor.py")


class Janitor:
    """A running janitor; it does its work when it is dismissed or when this process ends."""

    def __init__(self, *arguments: str) -> None:
        # -I and -S: nothing of the environment and of site-packages, so that it starts at once. A
        # session of its own keeps the terminal's signals away from it.
        self._process = subprocess.Popen(
            (sys.executable, "-I", "-S", str(PROGRAM), *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=without_git_variables(),
        )
        self._stdin: Any = self._process.stdin
        self._stdout: Any = self._process.stdout

    def answer(self) -> dict[str, str]:
        """What it said about the checkout that it was started with."""
        line = self._stdout.readline()
        answer: dict[str, str] = json.loads(line) if line else {"error": "the janitor died"}
        return answer

    def guard(self, group: int) -> None:
        """Have this process group killed at the end."""
        self._tell(f"group {group}\n")

    def forget(self, group: int) -> None:
        """This process group has ended; its number may come to mean another one."""
        self._tell(f"forget {group}\n")

    def _tell(self, line: str) -> None:
        with suppress(BrokenPipeError):
            self._stdin.write(line.encode())
            self._stdin.flush()

    def dismiss(self) -> bool:
        """Have it clean up and wait for it; whether everything is gone."""
        with suppress(BrokenPipeError):
            self._stdin.close()
        try:
            return self._process.wait() == 0
        finally:
            self._stdout.close()


@contextmanager
def janitor() -> Iterator[Janitor]:
    """A janitor of process groups."""
    keeper = Janitor()
    try:
        yield keeper
    finally:
        keeper.dismiss()


def without_git_variables() -> dict[str, str]:
    """The environment without what a git hook sets, which would point at another repository."""
    pointers = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")
    return {name: value for name, value in os.environ.items() if name not in pointers}
