"""A worker: a process of its own that generates on one device, and does nothing else.

`python -m sdopt.service.worker SOCKET MEMORY` with two inherited descriptors; the front starts it.
Three threads: one reads messages, one keeps the device busy, one waits for finished images. So the
next batch is on the device before the present one has ended.
"""

from __future__ import annotations

import importlib
import logging
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sdopt.errors import SdoptError
from sdopt.service import messages
from sdopt.service.logs import log, to_stderr
from sdopt.service.memory import Slots
from sdopt.service.queueing import Kind
from sdopt.service.settings import Facts, Shape

BROKEN = 70
"""Exit code of a worker that ran into an error it does not know: a new one starts clean."""
SWITCH_S = 0.0005
"""How long one Python thread may keep another waiting; Python's own 5 ms would show in latency."""

Pixels = NDArray[np.uint8]
Finish = Callable[[], Sequence[bool]]
"""Waits for the images of a batch, and says which of them are sound."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One image of a batch, and where its pixels go."""

    prompt: str
    negative_prompt: str
    seed: int
    pixels: Pixels


class Generator(Protocol):
    """What a worker generates with."""

    @property
    def facts(self) -> Facts:
        """Of the level and the source."""

    def warm(self, shapes: Sequence[Shape], max_batch: int, memory: Pixels) -> float:
        """Make every shape ready, alone and in batches; images a second of the first, batched."""

    def begin(self, kind: Kind, wanted: Sequence[Wanted]) -> Finish:
        """Put a batch on the device."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until the front is gone."""
    given = sys.argv[1:] if arguments is None else arguments
    sys.setswitchinterval(SWITCH_S)
    to_stderr()
    connection = socket.socket(fileno=int(given[0]))
    return Worker(connection, memory=int(given[1])).run()


class Worker:
    """One connection to the front, and what generates."""

    def __init__(self, connection: socket.socket, memory: int) -> None:
        self.connection = connection
        self.incoming = connection.makefile("rb")
        self.memory = memory
        self.to_device: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.to_finish: queue.Queue[tuple[dict[str, Any], Finish, float] | None] = queue.Queue()
        self.broken = False

    def run(self) -> int:
        """Load, warm up, generate; the exit code."""
        try:
            incoming = iter(messages.lines(self.incoming))
            generator = self._load(next(incoming))
            slots = self._warm(generator, next(incoming))
        except StopIteration:
            return 0  # the front went away meanwhile
        except SdoptError as error:
            self._send("unusable", error=str(error))
            return 2
        threading.Thread(target=self._read, args=(incoming,), daemon=True).start()
        finisher = threading.Thread(target=self._finish_all)
        finisher.start()
        while not self.broken and (message := self.to_device.get()) is not None:
            self._generate(generator, slots, message)
        self.to_finish.put(None)
        finisher.join()
        return BROKEN if self.broken else 0

    def _load(self, message: dict[str, Any]) -> Generator:
        module, _, name = message["maker"].partition(":")
        load = getattr(importlib.import_module(module), name)
        generator: Generator = load(message["level"], message["source"], message["device"])
        self._send("loaded", **vars(generator.facts))
        return generator

    def _warm(self, generator: Generator, message: dict[str, Any]) -> Slots:
        slots = Slots(self.memory, message["slots"], message["slot_bytes"])
        shapes = [Shape(**shape) for shape in message["shapes"]]
        begin = time.perf_counter()
        rate = generator.warm(shapes, message["max_batch"], slots.bytes)
        self._send("ready", images_per_s=rate, warm_s=time.perf_counter() - begin)
        return slots

    def _read(self, incoming: Iterable[dict[str, Any]]) -> None:
        """In a thread of its own: what is next is here before the device is asked for it."""
        try:
            for message in incoming:
                self.to_device.put(message)
        finally:
            self.to_device.put(None)

    def _generate(self, generator: Generator, slots: Slots, message: dict[str, Any]) -> None:
        kind = Kind(**message["kind"])
        wanted = [
            Wanted(
                prompt=job["prompt"],
                negative_prompt=job["negative_prompt"],
                seed=job["seed"],
                pixels=slots.pixels(job["slot"], kind.height, kind.width),
            )
            for job in message["jobs"]
        ]
        begun = time.perf_counter()
        try:
            finish = generator.begin(kind, wanted)
        except Exception as error:
            finish = self._one_by_one(generator, kind, wanted, error)
        self.to_finish.put((message, finish, begun))

    def _one_by_one(
        self, generator: Generator, kind: Kind, wanted: Sequence[Wanted], error: Exception
    ) -> Finish:
        """What failed in company may fail for one image alone: its batch-mates are made again."""
        if not isinstance(error, (SdoptError, ValueError)):
            self.broken = True
        if self.broken or len(wanted) == 1:
            return _raising(error)

        def finish() -> Sequence[bool]:
            return [_alone(generator, kind, one) for one in wanted]

        return finish

    def _finish_all(self) -> None:
        """In a thread of its own: wait for images while the next ones are put on the device."""
        ended = 0.0
        while (item := self.to_finish.get()) is not None:
            message, finish, begun = item
            answer: dict[str, Any] = {"batch": message["batch"]}
            try:
                answer["sound"] = [bool(one) for one in finish()]
            except SdoptError as error:
                answer["error"] = str(error)
            except Exception as error:
                log("a batch failed", logging.ERROR, raised=error)
                answer["error"], self.broken = f"{type(error).__name__}: {error}", True
            begun, ended = max(begun, ended), time.perf_counter()
            self._send("done", generate_s=ended - begun, **answer)
            if self.broken:
                self.to_device.put(None)

    def _send(self, kind: str, /, **values: Any) -> None:
        try:
            self.connection.sendall(messages.line(kind, **values))
        except OSError:  # the front is gone; reading ends too
            self.to_device.put(None)


def _raising(error: Exception) -> Finish:
    def finish() -> Sequence[bool]:
        raise error

    return finish


def _alone(generator: Generator, kind: Kind, wanted: Wanted) -> bool:
    try:
        return generator.begin(kind, [wanted])()[0]
    except (SdoptError, ValueError) as error:
        log("an image failed", logging.ERROR, raised=error)
        return False


if __name__ == "__main__":
    sys.exit(main())
