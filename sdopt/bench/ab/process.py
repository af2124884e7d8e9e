"""One worker as its coordinator sees it: started, asked, and ended whatever happens."""

from __future__ import annotations

import getpass
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol

from sdopt.bench.ab.cleanup import Janitor, without_git_variables
from sdopt.bench.ab.result import Spec
from sdopt.bench.ab.rounds import Side
from sdopt.errors import WorkerError
from sdopt.util.children import python_path
from sdopt.weights.sources import NAMED_SOURCES

QUIT_TIMEOUT_S = 30.0
LOG_LINES = 20
LOG_BYTES = 16_384
SLOW_COMMANDS = ("hello", "load")


class Process(Protocol):
    """What is needed of `subprocess.Popen`; its id is also that of its process group."""

    pid: int
    stdin: Any
    stdout: Any

    def wait(self, timeout: float | None = None) -> int:
        """Until it has ended."""


Start = Callable[[Spec, Side, IO[bytes]], Process]
"""Starts a worker that logs into the file."""


def spawned(spec: Spec, side: Side, log: IO[bytes]) -> Process:
    """A worker with an interpreter of its own."""
    tree = spec.sides.tree(side)
    return subprocess.Popen(
        (sys.executable, str(spec.worker), str(tree), *workload(spec)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        bufsize=0,
        cwd=tree,
        env=environment(tree, spec, side),
        start_new_session=True,
    )


class Worker:
    """A running worker of one side."""

    def __init__(self, spec: Spec, side: Side, start: Start = spawned) -> None:
        self.spec, self.side = spec, side
        # A file without a name: nothing is left of it, whoever dies first.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._process = start(spec, side, self._log)
        self._stdin: Any = self._process.stdin
        self._stdout: Any = self._process.stdout
        self.group = self._process.pid

    def ask(self, do: str, *, about: str = "", **arguments: Any) -> dict[str, Any]:
        """Its answer to one command. Raises WorkerError for none, a bad one or an error.

        `about` names the level that the worker has loaded.
        """
        self._asked = f"{do!r} of level {about!r}" if about else repr(do)
        try:
            self._stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        except BrokenPipeError:
            self._fail_dead()
        timeout_s = self.spec.load_timeout_s if do in SLOW_COMMANDS else self.spec.timeout_s
        line = self._answer_line(timeout_s)
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self.fail(f"answered {line[:200]!r}, which is no JSON object")
        if "error" in answer:
            self.fail(f"failed: {answer['error']}")
        return answer

    def _answer_line(self, timeout_s: float) -> bytes:
        line, deadline = b"", time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    self.fail(f"said nothing for {timeout_s:g} s")
                read = os.read(self._stdout.fileno(), 65_536)
                if not read:
                    self._fail_dead()
                line += read
        return line

    def _fail_dead(self) -> NoReturn:
        try:
            status = f"status {self._process.wait(QUIT_TIMEOUT_S)}"
        except subprocess.TimeoutExpired:
            status = "its stdout closed"
        self.fail(f"ended ({status})")

    def fail(self, what: str) -> NoReturn:
        """Raise WorkerError, with the end of the worker's log."""
        tree = self.spec.sides.tree(self.side)
        log = self._log_tail()
        raise WorkerError(
            f"the {self.side} worker in {tree}, asked for {self._asked}, {what}\n"
            + (f"the end of its log:\n{log}\n" if log else "its log is empty\n")
            + f"next: repair it in the {self.side}, or leave this level out, and run it again"
        )

    def _log_tail(self) -> str:
        # pread, because the worker writes at the position that it shares with this process.
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), LOG_BYTES, max(size - LOG_BYTES, 0))
        lines = text.decode(errors="replace").splitlines()[-LOG_LINES:]
        return "\n".join(f"  {line}" for line in lines)

    def quit(self) -> None:
        """Let it end by itself; one that does not is killed by `end`."""
        self.ask("quit")
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(QUIT_TIMEOUT_S)

    def kill(self) -> None:
        """Kill what is left of it and of the processes that it started, without waiting."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.group, signal.SIGKILL)

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        self.kill()
        self._process.wait()
        for stream in (self._stdin, self._stdout, self._log):
            stream.close()


@contextmanager
def running(spec: Spec, side: Side, keeper: Janitor) -> Iterator[Worker]:
    """A fresh worker, gone afterwards."""
    worker = Worker(spec, side)
    try:
        keeper.guard(worker.group)
        yield worker
        worker.quit()
    finally:
        worker.end()
        keeper.forget(worker.group)


def workload(spec: Spec) -> tuple[str, str]:
    """Source and prompts as arguments that mean the same in another folder."""
    source = spec.source
    if source not in NAMED_SOURCES and Path(source).exists():
        source = str(Path(source).resolve())
    return source, str(spec.prompts.resolve()) if spec.prompts else ""


def environment(tree: Path, spec: Spec, side: Side) -> dict[str, str]:
    """The tree's package first, and a compile cache that is this side's own in every run.

    In a shared one the first side would compile for the second, and its first calls look slow.
    Unless the user says otherwise, OpenMP's threads sleep while they wait. By default they spin,
    which takes the core from the thread that they wait for as soon as another program is busy too:
    beside one, the same image took 3 to 75 s at random, and 1 to 3 s with this.
    """
    inherited = without_git_variables()
    cache = inductor_cache()
    threads = {"TORCHINDUCTOR_COMPILE_THREADS": str(spec.compile_threads)}
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        **inherited,
        **(threads if spec.compile_threads else {}),
        "PYTHONPATH": python_path(tree.resolve()),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "sdopt-ab" / side if spec.own_caches else cache),
    }


def inductor_cache() -> Path:
    """Where Inductor keeps its code: as torch says it, without importing torch."""
    if set_by_user := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        return Path(set_by_user).absolute()
    try:
        user = getpass.getuser()
    except (KeyError, ModuleNotFoundError, OSError):
        user = f"uid_{os.getuid()}"
    return Path(tempfile.gettempdir()) / f"torchinductor_{re.sub(r'[^A-Za-z0-9._-]', '_', user)}"
