"""Workers forked from one process that has imported everything: Python's fork server, preloaded.

They save the imports, and share its address layout and hash seed: a little less fresh than
processes of their own. CUDA contexts, allocations and all that is compiled are theirs alone.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import subprocess
import sys
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any
from unittest.mock import patch

from sdopt.bench.ab import worker
from sdopt.bench.ab.process import Process, Start, environment, workload
from sdopt.bench.ab.result import Spec
from sdopt.bench.ab.rounds import Side
from sdopt.errors import WorkerError

PRELOADED = "studies.power.template"
NOT_INITIALIZED = 3
"""CUDA_ERROR_NOT_INITIALIZED: what the driver answers before cuInit."""


class Forked:
    """A forked worker, as `subprocess.Popen` would show it."""

    def __init__(self, process: Any, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self._process, self.stdin, self.stdout = process, stdin, stdout
        self.pid: int = process.pid

    def wait(self, timeout: float | None = None) -> int:
        """Until it has ended. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return int(self._process.exitcode)


def forking(spec: Spec) -> Start:
    """Import once, for both sides of one tree; what starts a worker from then on.

    The server takes the environment of the first call and ends with this process. Raises
    WorkerError if it cannot import, or if that starts CUDA, which a child could not use.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    with patch.dict(os.environ, environment(spec.sides.head, spec, "head")):
        # While it imports, libraries that ask whether there is a GPU are told by NVML.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        forkserver.ensure_running()
    first = context.Process(target=_check_preloaded, args=(PRELOADED,), daemon=True)
    try:
        first.start()
        first.join(spec.load_timeout_s)
    except (OSError, EOFError) as error:
        raise WorkerError("the process that imports for all others failed; see above") from error
    if first.exitcode:
        raise WorkerError("the process that imports for all others could not; see above")

    def start(spec: Spec, side: Side, log: IO[bytes]) -> Process:
        """Fork a worker."""
        stdin, ours_in = os.pipe()
        ours_out, stdout = os.pipe()
        ready, theirs = context.Pipe(duplex=False)
        descriptors = [Connection(each) for each in (stdin, stdout, os.dup(log.fileno()))]
        station = [str(spec.sides.tree(side)), *workload(spec)]
        process = context.Process(target=_serve, args=(theirs, descriptors, station), daemon=True)
        process.start()
        for each in (theirs, *descriptors):
            each.close()
        ready.poll(spec.load_timeout_s)  # then it is in a group of its own, which can be killed
        ready.close()
        return Forked(process, os.fdopen(ours_in, "wb", 0), os.fdopen(ours_out, "rb", 0))

    return start


def _check_preloaded(name: str) -> None:
    if name not in sys.modules:  # the server passes ImportErrors by
        __import__(name)


def _serve(ready: Any, descriptors: list[Any], station: list[str]) -> None:
    """Be a worker in a process group of its own."""
    os.setpgid(0, 0)
    ready.close()
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor.fileno(), target)
        descriptor.close()
    os.chdir(station[0])
    worker.check_origin(Path(station[0]))
    worker.main(station)


def refuse_started_cuda() -> None:
    """A child of a process in which CUDA has started cannot use it: raises RuntimeError."""
    if cuda_has_started():
        raise RuntimeError("the imports started CUDA: no worker can be forked; record without it")


def cuda_has_started() -> bool:
    """Whether the driver was initialized in this process; False where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return int(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))) != NOT_INITIALIZED
