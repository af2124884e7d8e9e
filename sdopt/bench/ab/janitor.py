"""The program that cleans up after a run, however that ends; see `sdopt.bench.ab.cleanup`.

It reads lines from stdin, such as '["kill", 1234]', '["spare", 1234]' and '["remove", "/tmp/x"]',
until end of file: that comes when its parent is done with it and also when its parent is killed.
Then it kills the process groups and removes the folders, and ends with 1 if something is left.

It is a process of its own because nothing survives SIGKILL inside of one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

GONE_WITHIN_S = 5.0
"""How long to wait for killed processes, which may still be writing into the folder."""


def main() -> int:
    """Do the work."""
    # A terminal's Ctrl-C and a runner's SIGTERM often reach the whole tree of processes.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    left = told(sys.stdin)
    for word, what in left:
        if word == "kill":
            end_group(what)
    return int(not all(removed(what) for word, what in left if word == "remove"))


def told(lines: Iterable[str]) -> list[tuple[str, Any]]:
    """What there is to kill and to remove when the lines end."""
    left: dict[tuple[str, Any], None] = {}
    with suppress(ValueError):  # a line cut off with its writer: the number may be another group's
        for line in lines:
            word, what = json.loads(line)
            if word == "spare":
                left.pop(("kill", what), None)
            else:
                left[word, what] = None
    return list(left)


def end_group(group: int) -> None:
    """Kill the process group and wait until it is gone."""
    deadline = time.monotonic() + GONE_WITHIN_S
    with suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < deadline:
            os.killpg(group, signal.SIGKILL)
            time.sleep(0.02)


def removed(folder: str) -> bool:
    """Whether the folder is gone."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while os.path.exists(folder) and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.02)
    return not os.path.exists(folder)


if __name__ == "__main__":
    sys.exit(main())
