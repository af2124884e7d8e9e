"""Finished images as a response carries them, by other threads than the event loop's."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from sdopt.service.memory import Slots
from sdopt.service.png import base64_of, png
from sdopt.service.queueing import Job, Kind, Made

MOST_THREADS = 16


class Encoders:
    """Threads that encode; `encoded` is told of each image and its seconds, None if unwanted."""

    def __init__(self, encoded: Callable[[Made | None, float], None]) -> None:
        self.encoded = encoded
        self._threads = ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1), "encode")
        self._tasks: set[asyncio.Task[None]] = set()

    def encode(self, slots: Slots, slot: int, job: Job, made: Made) -> None:
        """Answer the job with the image in the slot, then free the slot."""
        task = asyncio.create_task(self._encode(slots, slot, job, made))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Let what is being encoded be finished."""
        self._threads.shutdown(wait=True)

    async def _encode(self, slots: Slots, slot: int, job: Job, made: Made) -> None:
        content, seconds = None, 0.0
        if not job.future.done():
            loop = asyncio.get_running_loop()
            content, seconds = await loop.run_in_executor(
                self._threads, _png_base64, slots, slot, job.kind
            )
        slots.free.append(slot)
        if content is None or job.future.done():
            self.encoded(None, seconds)
            return
        job.future.set_result(replace(made, png_base64=content))
        self.encoded(made, seconds)


def _png_base64(slots: Slots, slot: int, kind: Kind) -> tuple[bytes, float]:
    begin = time.perf_counter()
    content = base64_of(png(slots.pixels(slot, kind.height, kind.width)))
    return content, time.perf_counter() - begin
