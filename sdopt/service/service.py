"""Jobs in, images out: workers are kept alive and busy, and none of their images is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from sdopt.service import failures, workers
from sdopt.service.encoding import Encoders
from sdopt.service.failures import ApiError
from sdopt.service.logs import log
from sdopt.service.metrics import Metrics
from sdopt.service.queueing import Job, JobQueue, Kind, Made
from sdopt.service.settings import Limits, Settings, Shape
from sdopt.service.workers import Batch, Worker

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Before a dead worker is started again: doubled each time that it dies before it was ready."""
MOST_FIRST_STARTS = 3
COLD_TIMES = 15
"""So many times as long as others a batch may take that has to be compiled first."""
SMOOTHING = 0.2


class Service:
    """The queue, the workers and what is between them. All methods run in one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.limits: Limits | None = None
        self.queue = JobQueue(
            most=settings.max_queue,
            max_batch=settings.max_batch,
            wait_s=settings.wait_ms / 1e3,
            batches=self._is_batched,
        )
        self.workers = [
            Worker(name=str(number), device=device, settings=settings)
            for number, device in enumerate(settings.devices)
        ]
        self.metrics = Metrics(lambda: len(self.queue))
        self.stopping = False
        self.fatal: str | None = None
        self.ended = asyncio.Event()
        self._encoders = Encoders(self._encoded)
        self._tasks: list[asyncio.Task[None]] = []
        self._batches = 0
        self._timer: asyncio.TimerHandle | None = None

    # The life of the service

    def start(self) -> None:
        """Start the workers; `is_ready` says when the first one generates."""
        for worker in self.workers:
            task = asyncio.create_task(self._keep(worker))
            task.add_done_callback(self._kept)
            self._tasks.append(task)

    @property
    def is_ready(self) -> bool:
        """Whether a request would be taken."""
        return not self.stopping and any(worker.state == "ready" for worker in self.workers)

    @property
    def images_per_s(self) -> float:
        """What all workers together were measured to do."""
        return max(sum(w.images_per_s for w in self.workers if w.state == "ready"), 1e-3)

    def refuse_new(self) -> None:
        """Take nothing more; what is queued is still generated."""
        self.stopping = True

    def fail_waiting(self, error: ApiError) -> None:
        """Answer everything that waits or is being generated with an error."""
        for worker in self.workers:
            for batch in worker.batches.values():
                _fail(batch.jobs, error)
        _fail(self.queue.clear(), error)

    async def stop(self) -> None:
        """End the workers."""
        self.stopping = True
        for worker in self.workers:
            if worker.state not in ("ready", "stopped"):
                worker.kill()  # it loads or warms up: nobody waits for that
            worker.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._encoders.close()

    # Requests

    def submit(self, jobs: list[Job]) -> None:
        """Queue the images of one request. Raises ApiError 429 or 503."""
        if self.stopping:
            raise failures.shutting_down()
        if not self.is_ready:
            raise failures.not_ready()
        self.queue.put(jobs, self._now(), self.images_per_s)
        self._pump()

    def withdraw(self, jobs: Sequence[Job]) -> None:
        """Their client is gone: what is not being generated yet will not be."""
        for job in jobs:
            job.future.cancel()  # which one that is done ignores
        self.metrics.dropped.inc(sum(job.future.cancelled() for job in jobs))
        self.queue.remove(jobs)
        self._pump()

    # Workers

    async def _keep(self, worker: Worker) -> None:
        """A worker's life, and its next ones."""
        deaths = 0
        while not self.stopping and self.fatal is None:
            await worker.start()
            was_ready = False
            while (message := await worker.receive()) is not None:
                was_ready = self._heard(worker, message) or was_ready
            code = await worker.ended()
            deaths = 0 if was_ready else deaths + 1
            self._mourn(worker, code, deaths)
            if not self.stopping and self.fatal is None:
                pause_s = min(FIRST_PAUSE_S * 2 ** max(deaths - 1, 0), LONGEST_PAUSE_S)
                await asyncio.sleep(pause_s if deaths else 0)
                worker.restarts += 1
                self.metrics.restarts.labels(worker.name, worker.device).inc()
        worker.state = "stopped"

    def _kept(self, task: asyncio.Task[None]) -> None:
        """A worker without its keeper would never answer: the service ends instead."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._give_up(f"{type(error).__name__}: {error}")

    def _mourn(self, worker: Worker, code: int, deaths: int) -> None:
        """A worker's process has ended: what it had is answered."""
        worker.state = "stopped" if self.stopping else "restarting"
        self.metrics.ready.labels(worker.name, worker.device).set(0)
        for batch in worker.batches.values():
            if batch.stuck is not None:
                batch.stuck.cancel()
            _fail(batch.jobs, failures.worker_died(worker.device))
        worker.batches.clear()
        if self.stopping:
            return
        log("worker died", logging.ERROR, worker=worker.name, device=worker.device, code=code)
        if deaths >= MOST_FIRST_STARTS and self.limits is None:
            self._give_up(f"the worker of {worker.device} ended {deaths} times before it was ready")
        if deaths and not self.is_ready:
            _fail(self.queue.clear(), failures.not_ready())
        self._pump()

    def _give_up(self, message: str) -> None:
        if self.fatal is None:
            self.fatal = message
        self.ended.set()

    def _heard(self, worker: Worker, message: dict[str, Any]) -> bool:
        """Act on a message; whether the worker is ready now."""
        told: dict[str, Any] = {"worker": worker.name, "device": worker.device}
        if message["is"] == "loaded":
            self._loaded(worker, message)
        elif message["is"] == "ready":
            worker.state = "ready"
            worker.images_per_s, worker.warm_s = message["images_per_s"], message["warm_s"]
            self.metrics.ready.labels(worker.name, worker.device).set(1)
            log("worker ready", **told, pid=worker.pid, warm_s=round(worker.warm_s, 3))
            self._pump()
            return True
        elif message["is"] == "unusable":
            log("worker unusable", logging.ERROR, **told, error=message["error"])
            if self.limits is None or not self.is_ready:
                self._give_up(f"{worker.device}: {message['error']}")
        elif message["is"] == "done":
            self._done(worker, message)
        return False

    def _loaded(self, worker: Worker, message: dict[str, Any]) -> None:
        if self.limits is None:
            self.limits = Limits.of(self.settings, workers.facts_of(message))
            if error := impossible(self.limits):
                self._give_up(error)
                return
        worker.warm(self.limits)

    # Batches

    def _pump(self) -> None:
        """Give workers what they can take now, and come again when a batch was held long enough."""
        now = self._now()
        while batch := self._next(now):
            idle = [worker for worker in self.workers if worker.is_idle]
            worker = min(idle or self._with_room(), key=lambda worker: len(worker.batches))
            self._dispatch(worker, batch, now)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        until = self.queue.held_until(now)
        if until is not None and any(worker.is_idle for worker in self.workers):
            self._timer = asyncio.get_running_loop().call_at(until, self._pump)

    def _next(self, now: float) -> list[Job]:
        idle = sum(worker.is_idle for worker in self.workers)
        return self.queue.take(idle, now) if idle or self._with_room() else []

    def _with_room(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.has_room(self.settings.max_batch)]

    def _dispatch(self, worker: Worker, jobs: list[Job], now: float) -> None:
        assert worker.slots is not None
        slots = [worker.slots.free.pop() for _ in jobs]
        self._batches += 1
        batch = Batch(jobs=jobs, slots=slots, dispatched_s=now)
        limit_s = self.settings.stuck_s * (COLD_TIMES if self._has_to_compile(jobs[0].kind) else 1)
        batch.stuck = asyncio.get_running_loop().call_later(limit_s, self._stuck, worker, limit_s)
        worker.generate(self._batches, batch)
        self.metrics.batch.observe(len(jobs))

    def _stuck(self, worker: Worker, limit_s: float) -> None:
        log(
            "worker stuck", logging.ERROR, worker=worker.name, device=worker.device, limit_s=limit_s
        )
        worker.kill()

    def _done(self, worker: Worker, message: dict[str, Any]) -> None:
        batch = worker.batches.pop(message["batch"])
        assert worker.slots is not None
        if batch.stuck is not None:
            batch.stuck.cancel()
        generate_s = message["generate_s"]
        self.metrics.generate_s.labels(worker.device).observe(generate_s)
        rate = len(batch.jobs) / max(generate_s, 1e-6)
        worker.images_per_s += SMOOTHING * (rate - worker.images_per_s)
        self.queue.answering(len(batch.jobs))
        sound = message.get("sound", [False] * len(batch.jobs))
        for job, slot, is_sound in zip(batch.jobs, batch.slots, sound, strict=True):
            if not is_sound:
                _fail([job], _unsound(message))
            made = Made(
                png_base64=b"",
                batch=len(batch.jobs),
                queue_s=batch.dispatched_s - job.submitted_s,
                generate_s=generate_s,
                device=worker.device,
            )
            self._encoders.encode(worker.slots, slot, job, made)
        self._pump()

    def _encoded(self, made: Made | None, encode_s: float) -> None:
        """An image was encoded, or its client is gone; its slot is free."""
        self.queue.answered(self._now(), client=made is not None)
        if made is not None:
            self.metrics.encode_s.observe(encode_s)
            self.metrics.queue_s.observe(made.queue_s)
            self.metrics.images.inc()
        if len(self.queue):
            self._pump()

    # Smaller questions

    def _has_to_compile(self, kind: Kind) -> bool:
        """Whether it was not made ready, on a level where that takes long."""
        assert self.limits is not None
        shape = Shape(width=kind.width, height=kind.height, steps=kind.steps)
        is_warm = shape in self.limits.shapes and kind.guidance_scale > 1
        return self.limits.facts.compiles and not is_warm

    def _is_batched(self, kind: Kind) -> bool:
        """What has to be compiled first is made alone: each number of images is compiled anew."""
        return not self._has_to_compile(kind)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def impossible(limits: Limits) -> str | None:
    """What is wrong with the sizes that were to be made ready."""
    multiple = limits.facts.multiple_px
    for shape in limits.shapes:
        sides = (shape.width, shape.height)
        if any(side % multiple or not multiple <= side <= limits.max_side_px for side in sides):
            return (
                f"size {shape.width}x{shape.height} cannot be served: level {limits.level!r} takes "
                f"multiples of {multiple} px, and --max-size is {limits.max_side_px}"
            )
    return None


def _unsound(message: dict[str, Any]) -> ApiError:
    if error := message.get("error"):
        return ApiError(500, "generation_failed", f"this could not be generated: {error}")
    return ApiError(
        500, "unsound_image", "the image holds NaN, or failed; try another guidance_scale or seed"
    )


def _fail(jobs: Sequence[Job], error: ApiError) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_exception(error)
            job.future.exception()  # retrieved, although its client may be gone
