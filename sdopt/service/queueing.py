"""Which images wait, and which of them are made in one batch: pure logic, told the time."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sdopt.service.failures import ApiError


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the images of one batch have in common.

    A negative prompt is no part of it: to have none is to have the empty one.
    """

    width: int
    height: int
    steps: int
    guidance_scale: float


@dataclass(frozen=True, kw_only=True)
class Made:
    """A finished image: base64 of its PNG, and what became of it on the way."""

    png_base64: bytes
    batch: int
    queue_s: float
    generate_s: float
    device: str


@dataclass(kw_only=True, eq=False)
class Job:
    """One image that somebody waits for."""

    kind: Kind
    prompt: str
    negative_prompt: str
    seed: int
    future: asyncio.Future[Made]
    submitted_s: float = 0.0
    held_s: float | None = None


@dataclass(kw_only=True)
class JobQueue:
    """Jobs in the order they came, of every kind; `batches` says whether a kind is batched.

    An idle worker takes what is there at once. Only where clients are being answered, or were less
    than `wait_s` ago, and have not come back yet it waits for them, at most `wait_s` after the last
    answer, so that they stay in one batch: a request without such company is never held.
    """

    most: int
    max_batch: int
    wait_s: float
    batches: Callable[[Kind], bool] = lambda kind: True
    _jobs: deque[Job] = field(default_factory=deque)
    _answering: int = 0
    _answered: deque[float] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, jobs: list[Job], now: float, images_per_s: float) -> None:
        """All of them, or none. Raises ApiError 429 with the time until there is room."""
        excess = len(self._jobs) + len(jobs) - self.most
        if excess > 0:
            raise ApiError(
                429,
                "queue_full",
                f"{len(self._jobs)} images are queued, of at most {self.most}; come again after "
                "the seconds in Retry-After",
                retry_after_s=excess / images_per_s,
            )
        for job in jobs:
            job.submitted_s = now
            if self._answered:  # somebody who was answered is back
                self._answered.popleft()
        self._jobs.extend(jobs)

    def answering(self, images: int) -> None:
        """So many were generated, and are about to be answered."""
        self._answering += images

    def answered(self, now: float, *, client: bool) -> None:
        """One of those was answered, and its client may be back within `wait_s`; or it is gone."""
        self._answering -= 1
        if client:
            self._answered.append(now)

    def remove(self, jobs: Iterable[Job]) -> None:
        """Those whose client is gone; others of them may have left before."""
        gone = set(jobs)
        self._jobs = deque(job for job in self._jobs if job not in gone)

    def clear(self) -> list[Job]:
        """Everything that waits, taken out."""
        jobs = list(self._jobs)
        self._jobs.clear()
        return jobs

    def take(self, idle: int, now: float) -> list[Job]:
        """The next batch for one of so many idle workers; empty if there is none yet.

        Without an idle worker only a full batch is given, which nothing could be added to: a worker
        has it at hand when its present one ends.
        """
        if not self._jobs:
            return []
        same = self._of_the_oldest()
        if not idle:
            full = len(same) >= self.max_batch and self.batches(same[0].kind)
            return self._taken(same) if full else []
        wanted = self._wanted(len(same), idle, now) if self.batches(same[0].kind) else 1
        if len(same) < wanted and (self._answering or not self._held_long_enough(same[0], now)):
            return []
        return self._taken(same[:wanted])

    def held_until(self, now: float) -> float | None:
        """When `take` may answer otherwise although nothing happened; None if it will not."""
        self._expire(now)
        if not self._jobs or self._jobs[0].held_s is None:
            return None
        ends = [self._jobs[0].held_s + self.wait_s]
        if self._answered and not self._answering:
            ends.append(self._answered[0] + self.wait_s)
        return min(ends)

    def _of_the_oldest(self) -> list[Job]:
        """Up to a batch of the kind that has waited longest."""
        kind = self._jobs[0].kind
        return [job for job in self._jobs if job.kind == kind][: self.max_batch]

    def _wanted(self, queued: int, idle: int, now: float) -> int:
        self._expire(now)
        back = self._answering + len(self._answered)
        return min(self.max_batch, math.ceil((queued + back) / idle))

    def _held_long_enough(self, oldest: Job, now: float) -> bool:
        if oldest.held_s is None:
            oldest.held_s = now
        return now - oldest.held_s >= self.wait_s

    def _expire(self, now: float) -> None:
        while self._answered and now - self._answered[0] >= self.wait_s:
            self._answered.popleft()

    def _taken(self, batch: list[Job]) -> list[Job]:
        self.remove(batch)
        return batch
