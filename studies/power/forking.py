"""Workers forked from one process that has imported everything: what the coordinator sees of it.

They save the imports, and share its address layout and hash seed: a little less fresh than
processes of their own. CUDA contexts, allocations and all that is compiled are theirs alone.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sdopt.bench.ab.cleanup import Janitor
from sdopt.bench.ab.process import LOG_BYTES, Process, environment, workload
from sdopt.bench.ab.result import Spec
from sdopt.bench.ab.rounds import Side
from sdopt.errors import WorkerError

PROGRAM = Path(__file__).with_name("template.py")
READY = b"ready"
POLL_S = 0.01


class Forked:
    """A worker that is no child of this process, as `subprocess.Popen` would show it."""

    def __init__(self, pid: int, stdin: Any, stdout: Any) -> None:
        self.pid, self.stdin, self.stdout = pid, stdin, stdout

    def wait(self, timeout: float | None = None) -> int:
        """Until it is gone, whose status nobody knows. Raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with suppress(ProcessLookupError):
            while True:
                os.kill(self.pid, 0)
                if deadline is not None and time.monotonic() > deadline:
                    raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
                time.sleep(POLL_S)
        return -1


class Template:
    """The process that forks."""

    def __init__(self, spec: Spec) -> None:
        tree = spec.sides.head
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                (sys.executable, str(PROGRAM), str(tree), *workload(spec), str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                cwd=tree,
                env=environment(tree, spec, "head"),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.group = self._process.pid

    def wait_until_ready(self, timeout_s: float) -> None:
        """Raises WorkerError with its log if it cannot be."""
        self._channel.settimeout(timeout_s)
        self._receive(len(READY))

    def start(self, spec: Spec, side: Side, log: IO[bytes]) -> Process:
        """Fork a worker; both sides are of the same tree."""
        stdin, ours_in = os.pipe()
        ours_out, stdout = os.pipe()
        try:
            socket.send_fds(self._channel, [b"."], [stdin, stdout, log.fileno()])
            pid = int.from_bytes(self._receive(4), "big")
        finally:
            os.close(stdin)
            os.close(stdout)
        return Forked(pid, os.fdopen(ours_in, "wb", 0), os.fdopen(ours_out, "rb", 0))

    def _receive(self, size: int) -> bytes:
        try:
            said = self._channel.recv(size, socket.MSG_WAITALL)
        except TimeoutError:
            said = b""
        if len(said) < size:
            end = os.pread(self._log.fileno(), LOG_BYTES, 0).decode(errors="replace")
            raise WorkerError(f"the process that imports for all others failed:\n{end}")
        return said

    def end(self) -> None:
        """Kill it; its workers are ended by whoever started them."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.group, signal.SIGKILL)
        self._process.wait()
        self._channel.close()
        self._log.close()


@contextmanager
def template(spec: Spec, keeper: Janitor) -> Iterator[Template]:
    """One that is ready, gone afterwards."""
    made = Template(spec)
    try:
        keeper.guard(made.group)
        made.wait_until_ready(spec.load_timeout_s)
        yield made
    finally:
        made.end()
        keeper.forget(made.group)
