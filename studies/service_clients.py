"""Clients of a running `sdopt serve`, and what is seen of its processes meanwhile."""

from __future__ import annotations

import base64
import ctypes
import http.client
import io
import json
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from statistics import fmean, quantiles
from typing import Any
from urllib.parse import urlsplit

import psutil

from sdopt.errors import SdoptError

PATH = "/v1/images/generations"
HEADERS = {"content-type": "application/json"}
POLL_S = 0.25
END_S = 60.0
MIB = 2**20
SETTLED = 0.2
"""The part of a load's images after which memory is looked at: its largest batch has come then."""
TAIL_BYTES = 4000
BESIDE_OTHERS = "other batch-mates, another place"
TRIES = 20
PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when the thread that started it ends."""
LOOP = "front_loop"
"""The front's first thread, its event loop, which has one core at most; the others encode."""


@dataclass(kw_only=True)
class Memory:
    """Resident memory of one process of the service under the last load, in MiB, by samples."""

    name: str
    samples_mib: list[float] = field(default_factory=list)
    begin_mib: float = 0.0
    end_mib: float = 0.0

    @property
    def growth_mib(self) -> float:
        """From where it had settled to the end."""
        return self.end_mib - self.begin_mib

    def summarize(self) -> None:
        """Means of a tenth of the samples, at the beginning and at the end."""
        tenth = max(1, len(self.samples_mib) // 10)
        self.begin_mib = fmean(self.samples_mib[:tenth])
        self.end_mib = fmean(self.samples_mib[-tenth:])


@dataclass(kw_only=True)
class Served:
    """A running service."""

    host: str
    port: int
    process: subprocess.Popen[str]
    memory: dict[int, Memory] = field(default_factory=dict)
    exit_code: int | None = None

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def pids(self) -> dict[int, str]:
        """The front and each worker."""
        _, body = self.get("/healthz")
        workers = json.loads(body)["workers"]
        return {self.process.pid: "front"} | {
            one["pid"]: f"worker {one['worker']}" for one in workers if one["pid"] is not None
        }

    def cpu_s(self) -> dict[str, float]:
        """Processor time so far: of the front, its event loop, all workers, and these clients."""
        found = {"front": 0.0, LOOP: 0.0, "workers": 0.0, "clients": time.process_time()}
        for pid, name in self.pids().items():
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                times = process.cpu_times()
                found["front" if name == "front" else "workers"] += times.user + times.system
                if name == "front":
                    threads = process.threads()
                    found[LOOP] = sum(
                        one.user_time + one.system_time for one in threads if one.id == pid
                    )
        return found

    def sample(self) -> None:
        """Note the memory of the front and of each worker."""
        for pid, name in self.pids().items():
            with suppress(psutil.Error):
                resident = psutil.Process(pid).memory_info().rss / MIB
                self.memory.setdefault(pid, Memory(name=name)).samples_mib.append(resident)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What so many clients saw. The rate leaves out the first and the last image of each."""

    clients: int
    answered: int
    lost: int
    errors: tuple[str, ...]
    images_per_s: float
    p50_ms: float
    p95_ms: float
    images_a_batch: float


@contextmanager
def served(
    command: Sequence[str], environment: Mapping[str, str], timeout_s: float
) -> Iterator[Served]:
    """A service from when it is ready to its orderly end. Raises SdoptError with its log's end."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=dict(environment),
            preexec_fn=_end_with_this,
        )
        service = None
        try:
            service = _ready(process, timeout_s)
            yield service
        except (SdoptError, OSError) as error:
            log.seek(0)
            raise SdoptError(f"{error}; its log ends with: {log.read()[-TAIL_BYTES:]}") from error
        finally:
            code = _end(process)
            if service is not None:
                service.exit_code = code
                for memory in service.memory.values():
                    memory.summarize()


def _end_with_this() -> None:
    """In the new process: if this one is killed, nothing below ends the service."""
    with suppress(OSError, AttributeError):  # Linux alone has it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _ready(process: subprocess.Popen[str], timeout_s: float) -> Served:
    assert process.stdout is not None
    line = process.stdout.readline()
    if "listening on " not in line:
        raise SdoptError(f"the service did not start: exit code {process.wait(END_S)}")
    url = urlsplit(line.split()[2].rstrip(";"))
    service = Served(host=url.hostname or "", port=url.port or 0, process=process)
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SdoptError(f"the service ended with exit code {process.returncode}")
        if service.get("/healthz/ready")[0] == 200:
            return service
        time.sleep(POLL_S)
    raise SdoptError(f"the service was not ready within {timeout_s:g} s")


def _end(process: subprocess.Popen[str]) -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
    finally:
        assert process.stdout is not None
        process.stdout.close()


class _Clients:
    """Threads that ask until so many images were asked for."""

    def __init__(self, service: Served, body: Mapping[str, Any], images: int) -> None:
        self.service, self.body, self.images = service, body, images
        self.lock = threading.Lock()
        self.asked = 0
        self.finished: list[tuple[float, float]] = []
        self.batches: list[int] = []
        self.errors: list[str] = []

    def ask(self) -> None:
        """One client: a connection that is kept, one request after the other."""
        connection = http.client.HTTPConnection(self.service.host, self.service.port, timeout=300)
        try:
            while (seed := self._next_seed()) is not None:
                self._ask(connection, seed)
        finally:
            connection.close()

    def _next_seed(self) -> int | None:
        with self.lock:
            if self.asked >= self.images:
                return None
            self.asked += 1
            return self.asked

    def _ask(self, connection: http.client.HTTPConnection, seed: int) -> None:
        content = json.dumps({**self.body, "seed": seed})
        begin = time.perf_counter()
        try:
            connection.request("POST", PATH, content, HEADERS)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self._failed(f"{type(error).__name__}: {error}")
            return
        end = time.perf_counter()
        # Nothing more of the body is looked at here: it would be time between two requests.
        tail = body[-80:].rpartition(b'"seed":')[2]
        if answer.status != 200 or not tail.startswith(b"%d," % seed):
            self._failed(f"{answer.status}: {body[:200]!r}")
            return
        with self.lock:
            self.finished.append((end, end - begin))
            self.batches.append(int(tail.partition(b'"batch":')[2].rstrip(b"}]")))

    def _failed(self, message: str) -> None:
        with self.lock:
            self.errors.append(message)


def under_load(
    service: Served, body: Mapping[str, Any], clients: int, images: int, timeout_s: float
) -> Load:
    """Ask for so many images by so many clients at once; memory is sampled once it has settled.

    Samples of an earlier load are dropped: larger batches take more memory, once.
    """
    service.memory.clear()
    crew = _Clients(service, body, images)
    threads = [threading.Thread(target=crew.ask, daemon=True) for _ in range(clients)]
    until = time.monotonic() + timeout_s
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if time.monotonic() > until:
            raise SdoptError(f"{len(crew.finished)} of {images} images came in {timeout_s:g} s")
        if len(crew.finished) >= SETTLED * images:
            service.sample()
        time.sleep(POLL_S)
    service.sample()
    return load_of(crew.finished, crew.batches, clients, images, crew.errors)


def load_of(
    finished: Sequence[tuple[float, float]],
    batches: Sequence[int],
    clients: int,
    images: int,
    errors: Sequence[str],
) -> Load:
    """The figures of what finished when, and after how long, in seconds."""
    ends = sorted(end for end, _ in finished)
    steady = ends[clients - 1 : len(ends) - clients + 1]
    if len(steady) < 2:
        raise SdoptError(f"{len(ends)} images were answered, too few; {errors[:3]}")
    cuts = quantiles([1e3 * seconds for _, seconds in finished], n=20, method="inclusive")
    return Load(
        clients=clients,
        answered=len(finished),
        lost=images - len(finished),
        errors=tuple(errors[:5]),
        images_per_s=(len(steady) - 1) / (steady[-1] - steady[0]),
        p50_ms=cuts[9],
        p95_ms=cuts[18],
        images_a_batch=len(batches) / sum(1 / batch for batch in batches),
    )


def images_of(service: Served, body: Mapping[str, Any]) -> list[tuple[Any, int]]:
    """The images of one request, as arrays, each with the number of images in its batch."""
    import numpy as np
    from PIL import Image

    connection = http.client.HTTPConnection(service.host, service.port, timeout=300)
    try:
        connection.request("POST", PATH, json.dumps(body), HEADERS)
        answer = connection.getresponse()
        content = json.loads(answer.read())
    finally:
        connection.close()
    if answer.status != 200:
        raise SdoptError(f"the service answered {answer.status}: {content}")
    found = [(base64.b64decode(one["b64_json"]), int(one["batch"])) for one in content["data"]]
    return [
        (np.asarray(Image.open(io.BytesIO(file)), dtype=np.int16), batch) for file, batch in found
    ]


def generated_alike(service: Served, body: Mapping[str, Any], max_batch: int) -> dict[str, str]:
    """Whether an image is the same bits again, with other batch-mates, and alone.

    Idle workers share the images of one request. So two batches of one size may take some tries.
    """

    def differing(image: Any, other: Any) -> str:
        apart = abs(image - other)
        most = int(apart.max())
        return f"{int((apart > 0).sum())} values, by {most} of 255" if most else "the same bits"

    alone, _ = images_of(service, {**body, "seed": 10})[0]
    again, _ = images_of(service, {**body, "seed": 10})[0]
    found = {"alone again": differing(alone, again)}
    if max_batch == 1:
        return found
    first: dict[int, Any] = {}  # by the size of the batch
    second: dict[int, Any] = {}
    for _ in range(TRIES):
        image, size = images_of(service, {**body, "seed": 10, "n": max_batch})[0]
        moved, moved_size = images_of(service, {**body, "seed": 9, "n": max_batch})[1]
        first[size], second[moved_size] = image, moved
        if both := first.keys() & second.keys():
            size = max(both)
            found[BESIDE_OTHERS] = differing(first[size], second[size])
            found[f"in a batch of {size} against alone"] = differing(first[size], alone)
            return found
    found[BESIDE_OTHERS] = "no two batches of one size came"
    return found
