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

    def __init__(self) -> None:
        # -I and -S: nothing of the environment and of site-packages, so that it starts at once. A
        # session of its own keeps the terminal's signals away from it.
        self._process = subprocess.Popen(
            (sys.executable, "-I", "-S", str(PROGRAM)),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._stdin: Any = self._process.stdin

    def guard(self, group: int) -> None:
        """Have this process group killed at the end."""
        self._tell("kill", group)

    def forget(self, group: int) -> None:
        """This process group has ended; its number may come to mean another one."""
        self._tell("spare", group)

    def remove(self, folder: Path) -> None:
        """Have this folder, which need not be there yet, removed at the end."""
        self._tell("remove", str(folder))

    def _tell(self, word: str, what: int | str) -> None:
        with suppress(BrokenPipeError):
            self._stdin.write(json.dumps([word, what]).encode() + b"\n")
            self._stdin.flush()

    def dismiss(self) -> bool:
        """Have it clean up and wait for it; whether everything is gone."""
        with suppress(BrokenPipeError):
            self._stdin.close()
        return self._process.wait() == 0


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
