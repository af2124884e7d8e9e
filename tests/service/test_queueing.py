"""Which images are made together and who waits for whom, by a clock that the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from sdopt.service.failures import ApiError
from sdopt.service.queueing import Job, JobQueue, Kind

SMALL = Kind(width=64, height=64, steps=20, guidance_scale=7.5)
LARGE = Kind(width=128, height=64, steps=20, guidance_scale=7.5)
WAIT_S = 0.01


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


class Jobs:
    def __init__(self, loop: asyncio.AbstractEventLoop, **fields: Any) -> None:
        self.loop = loop
        self.queue = JobQueue(**{"most": 8, "max_batch": 4, "wait_s": WAIT_S, **fields})

    def put(self, count: int = 1, kind: Kind = SMALL, now: float = 0.0) -> list[Job]:
        jobs = [
            Job(kind=kind, prompt="", negative_prompt="", seed=0, future=self.loop.create_future())
            for _ in range(count)
        ]
        self.queue.put(jobs, now, images_per_s=2.0)
        return jobs


def test_an_isolated_request_is_never_held(loop: asyncio.AbstractEventLoop) -> None:
    jobs = Jobs(loop)
    [one] = jobs.put()
    assert jobs.queue.take(1, 0.0) == [one]
    assert jobs.queue.take(1, 0.0) == []


def test_the_only_client_that_comes_back_is_not_held(loop: asyncio.AbstractEventLoop) -> None:
    jobs = Jobs(loop)
    jobs.put()
    jobs.queue.take(1, 0.0)
    jobs.queue.answering(1)
    jobs.queue.answered(1.0, client=True)
    jobs.put(now=1.001)
    assert len(jobs.queue.take(1, 1.001)) == 1


def test_clients_that_are_being_answered_are_waited_for(loop: asyncio.AbstractEventLoop) -> None:
    jobs = Jobs(loop)
    jobs.queue.answering(2)
    jobs.put()
    assert jobs.queue.take(1, 1.0) == []
    assert jobs.queue.take(1, 5.0) == []  # as long as the answers take
    jobs.queue.answered(5.0, client=True)
    jobs.queue.answered(5.0, client=True)
    jobs.put(now=5.001)
    assert jobs.queue.take(1, 5.001) == []
    jobs.put(now=5.002)
    assert len(jobs.queue.take(1, 5.002)) == 3


def test_clients_that_do_not_come_back_are_waited_for_no_longer_than_was_said(
    loop: asyncio.AbstractEventLoop,
) -> None:
    jobs = Jobs(loop)
    jobs.put(2, now=0.5)  # not those that are answered below
    for _ in range(3):
        jobs.queue.answering(1)
        jobs.queue.answered(1.0, client=True)
    assert jobs.queue.take(1, 1.0) == []
    until = jobs.queue.held_until(1.0)
    assert until == pytest.approx(1.0 + WAIT_S)
    assert jobs.queue.take(1, 1.0 + WAIT_S / 2) == []
    assert len(jobs.queue.take(1, until)) == 2


def test_a_client_that_is_gone_is_not_waited_for(loop: asyncio.AbstractEventLoop) -> None:
    jobs = Jobs(loop)
    jobs.put()
    jobs.queue.answering(1)
    jobs.queue.answered(1.0, client=False)
    assert len(jobs.queue.take(1, 1.0)) == 1


def test_a_full_batch_goes_at_once_and_to_a_busy_worker_too(
    loop: asyncio.AbstractEventLoop,
) -> None:
    jobs = Jobs(loop)
    jobs.put(3)
    assert jobs.queue.take(0, 0.0) == []
    jobs.put(2)
    assert len(jobs.queue.take(0, 0.0)) == 4
    assert jobs.queue.take(0, 0.0) == []
    assert len(jobs.queue) == 1


def test_idle_workers_share(loop: asyncio.AbstractEventLoop) -> None:
    jobs = Jobs(loop)
    jobs.put(4)
    assert len(jobs.queue.take(2, 0.0)) == 2
    assert len(jobs.queue.take(1, 0.0)) == 2


def test_a_batch_is_of_one_kind_and_the_oldest_goes_first(loop: asyncio.AbstractEventLoop) -> None:
    jobs = Jobs(loop)
    first, second = jobs.put(1), jobs.put(2, LARGE)
    first += jobs.put(1)
    assert jobs.queue.take(1, 0.0) == first
    assert jobs.queue.take(1, 0.0) == second


def test_what_is_compiled_on_request_is_made_alone(loop: asyncio.AbstractEventLoop) -> None:
    jobs = Jobs(loop, batches=lambda kind: kind != LARGE)
    jobs.put(4, LARGE)
    assert jobs.queue.take(0, 0.0) == []
    assert len(jobs.queue.take(1, 0.0)) == 1


def test_a_full_queue_says_when_there_is_room(loop: asyncio.AbstractEventLoop) -> None:
    jobs = Jobs(loop)
    jobs.put(8)
    with pytest.raises(ApiError) as raised:
        jobs.put(4)
    assert raised.value.status == 429
    assert raised.value.headers == {"retry-after": "2"}  # four images at two a second
    assert len(jobs.queue) == 8


def test_who_is_gone_is_taken_out(loop: asyncio.AbstractEventLoop) -> None:
    jobs = Jobs(loop)
    gone, there = jobs.put(2), jobs.put(1)
    jobs.queue.remove(gone)
    jobs.queue.remove(gone)
    assert jobs.queue.take(1, 0.0) == there
