"""Processes forked from one that has imported a module: each runs its `main`, and dies alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 120
SERVER = """
import importlib, json, os, signal, sys

module = importlib.import_module(sys.argv[1])


def child(asked):
    signal.alarm(asked["timeout_s"])
    os.environ.update(asked["variables"])
    for number, path in ((0, os.devnull), (1, asked["told"]), (2, asked["told"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    module.main(*asked["arguments"])


while line := os.read(0, 1 << 16):
    processes = []
    for asked in json.loads(line):
        process = os.fork()
        if not process:
            child(asked)
            sys.exit()
        processes.append(process)
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    os.write(1, json.dumps(codes).encode() + b"\\n")
"""


@dataclass(frozen=True, kw_only=True)
class Process:
    """What to run: the arguments of `main`, more variables, where all that it tells goes."""

    arguments: Sequence[str]
    told: Path
    variables: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Forks:
    """The process that has imported, and forks."""

    server: subprocess.Popen[str]

    def run(self, processes: Sequence[Process]) -> list[int]:
        """Run them at once; return their codes, that of a signal negative."""
        asked: list[dict[str, Any]] = [
            {
                "arguments": list(one.arguments),
                "told": str(one.told),
                "variables": dict(one.variables),
                "timeout_s": TIMEOUT_S,
            }
            for one in processes
        ]
        assert self.server.stdin
        assert self.server.stdout
        print(json.dumps(asked), file=self.server.stdin, flush=True)
        codes: list[int] = json.loads(self.server.stdout.readline())
        return codes


@contextmanager
def forks_of(module: str) -> Iterator[Forks]:
    """Forks of a fresh process in which that module of tests/ is imported, quietly."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{SERVER}"
    command = (sys.executable, "-W", "ignore", "-c", code, module)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        yield Forks(server=server)
        assert server.stdin
        server.stdin.close()
