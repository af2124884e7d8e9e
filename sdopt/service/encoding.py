"""Finished images as a response carries them, by other threads than the event loop's."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from sdopt.service import png
from sdopt.service.memory import Slots
from sdopt.service.queueing import Job, Made

MOST_THREADS = 16
MOST_STRIPS = 4
"""Of one image: a single client waits for all of them."""


class Encoders:
    """Threads that encode; `encoded` is told of each image and its seconds, None if unwanted."""

    def __init__(self, encoded: Callable[[Made | None, float], None]) -> None:
        self.encoded = encoded
        count = min(MOST_THREADS, os.cpu_count() or 1)
        self.strips = max(1, min(MOST_STRIPS, count // 2))
        self._threads = ThreadPoolExecutor(count, "encode")
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
        begin, content = time.perf_counter(), None
        try:
            if not job.future.done():
                pixels = slots.pixels(slot, job.kind.height, job.kind.width)
                content = await self._png_base64(pixels)
        except Exception as error:
            job.future.set_exception(error)
        slots.free.append(slot)
        if content is None or job.future.done():
            self.encoded(None, 0.0)
            return
        job.future.set_result(replace(made, png_base64=content))
        self.encoded(made, time.perf_counter() - begin)

    async def _png_base64(self, pixels: png.Pixels) -> bytes:
        """The thread that deflates the last strip joins them: one way back for all."""
        loop = asyncio.get_running_loop()
        whole: asyncio.Future[bytes] = loop.create_future()
        height, width, _ = pixels.shape
        rows = png.strips_of(height, self.strips)
        made: dict[int, png.Strip] = {}
        lock = threading.Lock()

        def deflate(index: int) -> None:
            try:
                one = png.strip(pixels, rows[index])
                with lock:
                    made[index] = one
                    is_last = len(made) == len(rows)
                if is_last:
                    strips = [made[index] for index in range(len(rows))]
                    content = png.base64_of(png.joined(width, height, strips))
                    loop.call_soon_threadsafe(_answer, whole, content)
            except Exception as error:
                loop.call_soon_threadsafe(_fail, whole, error)

        for index in range(len(rows)):
            self._threads.submit(deflate, index)
        return await whole


def _answer(whole: asyncio.Future[bytes], content: bytes) -> None:
    if not whole.done():
        whole.set_result(content)


def _fail(whole: asyncio.Future[bytes], error: Exception) -> None:
    if not whole.done():
        whole.set_exception(error)
