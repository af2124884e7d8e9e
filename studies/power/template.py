"""The program that imports once and forks into workers; see `studies.power.forking`.

    template.py TREE SOURCE PROMPTS SOCKET

It never starts CUDA, so that each worker makes a context of its own: while it imports, libraries
that ask whether there is a GPU are told by NVML. For every three file descriptors that arrive on
the socket, a worker's stdin, stdout and stderr, it answers with the worker's process id in four
bytes; it ends with the socket.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

PRELOADED = ("torch", "diffusers", "transformers", "sdopt.pipelines.pipeline", "sdopt.weights.sd15")
READY = b"ready"
NOT_INITIALIZED = 3
"""CUDA_ERROR_NOT_INITIALIZED: what the driver answers before cuInit."""


def main(arguments: list[str]) -> None:
    """Import, then fork until nobody asks any more."""
    *station, descriptor = arguments
    beside = str(Path(__file__).resolve().parent)
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != beside]
    from sdopt.bench.ab import worker

    worker.check_origin(Path(station[0]))
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    for name in PRELOADED:
        importlib.import_module(name)
    refuse_started_cuda()
    with socket.socket(fileno=int(descriptor)) as channel:
        channel.sendall(READY)
        while descriptors := socket.recv_fds(channel, 1, 3)[1]:
            channel.sendall(forked(channel, descriptors, station).to_bytes(4, "big"))


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


def forked(channel: socket.socket, descriptors: list[int], station: list[str]) -> int:
    """A worker in a process group of its own; whoever ends it, nobody has to wait for it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    pid = os.fork()
    if pid == 0:
        become_worker(channel, descriptors, station)
    # Both do it: whoever kills the group next must find it.
    with suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)
    for descriptor in descriptors:
        os.close(descriptor)
    return pid


def become_worker(channel: socket.socket, descriptors: list[int], station: list[str]) -> NoReturn:
    """Serve, then end without what the template would still do."""
    from sdopt.bench.ab import worker

    status = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        channel.close()
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
            os.close(descriptor)
        worker.main(station)
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
