"""The front's side of a worker: starting its process, its messages, its death."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sdopt.service import messages
from sdopt.service.memory import Slots, anonymous_file
from sdopt.service.queueing import Job
from sdopt.service.settings import Facts, Limits, Settings
from sdopt.util.children import python_path

State = Literal["starting", "warming", "ready", "restarting", "stopped"]
DEPTH = 2
"""Batches that a worker has at once: one on the device and one at hand."""
SPARE = 2
"""Further batches whose images are still being encoded."""
END_S = 5.0
"""What a worker that was told to end is given."""


@dataclass(kw_only=True, eq=False)
class Batch:
    """What a worker was given to do, and where its images go."""

    jobs: list[Job]
    slots: list[int]
    dispatched_s: float
    stuck: asyncio.TimerHandle | None = None


@dataclass(kw_only=True, eq=False)
class Worker:
    """One device's process; after its death the same object has the next one."""

    name: str
    device: str
    settings: Settings
    state: State = "starting"
    restarts: int = 0
    batches: dict[int, Batch] = field(default_factory=dict)
    images_per_s: float = 0.0
    warm_s: float = 0.0
    process: subprocess.Popen[bytes] | None = None
    slots: Slots | None = None
    _memory: int = -1
    _reader: asyncio.StreamReader | None = None
    _writer: asyncio.StreamWriter | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it could begin a batch at once."""
        return not self.batches and self.has_room(self.settings.max_batch)

    @property
    def pid(self) -> int | None:
        """Of its present process."""
        return self.process.pid if self.process else None

    def has_room(self, images: int) -> bool:
        """Whether it takes another batch of that many."""
        free = len(self.slots.free) if self.slots else 0
        return self.state == "ready" and len(self.batches) < DEPTH and free >= images

    async def start(self) -> None:
        """Start the process and tell it what to load."""
        ours, theirs = socket.socketpair()
        self._memory = anonymous_file()
        environment, device = device_environment(self.device, os.environ)
        with theirs:
            handed_on = (theirs.fileno(), self._memory)
            self.process = subprocess.Popen(
                (sys.executable, "-P", "-m", "sdopt.service.worker", *map(str, handed_on)),
                pass_fds=handed_on,
                stdin=subprocess.DEVNULL,
                env={**environment, "PYTHONPATH": python_path()},
                start_new_session=True,  # Ctrl-C is the front's: it lets workers finish
            )
        ours.setblocking(False)
        limit = messages.MOST_BYTES
        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=limit)
        self.state = "starting"
        self.send(
            "load",
            maker=self.settings.maker,
            level=self.settings.level,
            source=self.settings.source,
            device=device,
        )

    def warm(self, limits: Limits) -> None:
        """Share memory with it, and tell it what to make ready."""
        count = (DEPTH + SPARE) * self.settings.max_batch
        self.slots = Slots(self._memory, count, limits.slot_bytes)
        self.state = "warming"
        self.send(
            "warm",
            shapes=[asdict(shape) for shape in limits.shapes],
            max_batch=self.settings.max_batch,
            slots=count,
            slot_bytes=limits.slot_bytes,
        )

    def generate(self, number: int, batch: Batch) -> None:
        """Give it a batch."""
        self.batches[number] = batch
        jobs = [
            {
                "prompt": job.prompt,
                "negative_prompt": job.negative_prompt,
                "seed": job.seed,
                "slot": slot,
            }
            for job, slot in zip(batch.jobs, batch.slots, strict=True)
        ]
        self.send("generate", batch=number, kind=asdict(batch.jobs[0].kind), jobs=jobs)

    def send(self, kind: str, /, **values: Any) -> None:
        """A message; what a dead process does not read is lost with it."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(messages.line(kind, **values))

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None when the process is gone."""
        assert self._reader is not None
        try:
            content = await self._reader.readline()
        except (ConnectionError, ValueError):
            return None
        return messages.parsed(content) if content.endswith(b"\n") else None

    def kill(self) -> None:
        """End a process that hangs; `receive` then tells that it is gone."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Close the connection: the process finishes what it has, and ends."""
        if self._writer is not None:
            self._writer.close()

    async def ended(self) -> int:
        """Wait for the process; its exit code."""
        self.close()
        process = self.process
        assert process is not None
        for _ in range(round(END_S / 0.02)):
            if process.poll() is not None:
                break
            await asyncio.sleep(0.02)
        else:
            self.kill()
        code = await asyncio.to_thread(process.wait)
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1
        self.slots = None  # images that are still being encoded keep its memory
        return code

    def told(self) -> dict[str, Any]:
        """For /healthz."""
        return {
            "worker": self.name,
            "device": self.device,
            "state": self.state,
            "pid": self.pid,
            "restarts": self.restarts,
            "batches": len(self.batches),
        }


def facts_of(message: dict[str, Any]) -> Facts:
    """Of a `loaded` message."""
    return Facts.of({name: value for name, value in message.items() if name != "is"})


def device_environment(
    device: str, environment: Mapping[str, str]
) -> tuple[dict[str, str], str | None]:
    """The environment of a worker, and the name of its device in it.

    A worker sees its own GPU alone, so nothing of it ends up on the first one.
    """
    own = dict(environment)
    if device == "auto":
        return own, None
    if not device.startswith("cuda:"):
        return own, device
    index = int(device.removeprefix("cuda:"))
    visible = [one for one in own.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    if visible and index < len(visible):
        own["CUDA_VISIBLE_DEVICES"] = visible[index]
        return own, "cuda:0"
    if visible:
        return own, device  # which its own check refuses by name
    own["CUDA_VISIBLE_DEVICES"] = str(index)
    own.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    return own, "cuda:0"
