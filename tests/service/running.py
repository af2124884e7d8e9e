"""A service in this process: its event loop in a thread, on a free port of loopback."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_generator
import pytest

from sdopt.service import server
from sdopt.service.settings import Settings

PATH = "/v1/images/generations"
HERE = Path(__file__).parent
PATIENCE_S = 60.0


class Running:
    """Its address, and how to ask it and to end it."""

    def __init__(self) -> None:
        self.port = 0
        self.loop: asyncio.AbstractEventLoop | None = None
        self.end: Callable[[], None] = lambda: None
        self.code: int | None = None
        self.error: Exception | None = None
        self.begun = threading.Event()
        self.thread = threading.Thread(target=lambda: None)

    def started(self, url: str, end: Callable[[], None]) -> None:
        self.port, self.loop = int(url.rpartition(":")[2]), asyncio.get_running_loop()
        self.end = end
        self.begun.set()

    def run(self, settings: Settings) -> None:
        with server.bound(settings.host, 0) as sock:
            try:
                self.code = asyncio.run(server.serve(settings, sock, self.started, signals=()))
            except Exception as error:
                self.error = error

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, the JSON of the answer, its headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            content = body if isinstance(body, (bytes, type(None))) else json.dumps(body)
            given = {"content-type": "application/json", **(headers or {})}
            connection.request(method, path, content, given)
            answer = connection.getresponse()
            told = answer.read()
            kind = answer.headers.get_content_type()
            return (
                answer.status,
                json.loads(told) if kind == "application/json" else told.decode(),
                {name.lower(): value for name, value in answer.headers.items()},
            )
        finally:
            connection.close()

    def generate(self, prompt: str = "a cat", **fields: Any) -> tuple[int, Any, dict[str, str]]:
        return self.ask("POST", PATH, {"prompt": prompt, **fields})

    def later(self, prompt: str = "a cat", **fields: Any) -> Later:
        return Later(lambda: self.generate(prompt, **fields))

    def health(self) -> Any:
        return self.ask("GET", "/healthz")[1]

    def wait_for(self, is_so: Callable[[Any], bool], what: str) -> Any:
        """The health when it is so."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            health = self.health()
            if is_so(health):
                return health
            time.sleep(0.02)
        raise AssertionError(f"waited {PATIENCE_S} s for {what}: {health}")

    def ready(self) -> Running:
        self.wait_for(lambda health: health["ready"], "a worker")
        return self

    def tell_to_end(self) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.end)

    def metric(self, line: str) -> float:
        """The value in a line of /metrics that begins so."""
        found = [
            one.rpartition(" ")[2]
            for one in self.ask("GET", "/metrics")[1].splitlines()
            if one.startswith(line)
        ]
        return float(found[0]) if found else 0.0


class Later:
    """A request by a thread of its own."""

    def __init__(self, call: Callable[[], tuple[int, Any, dict[str, str]]]) -> None:
        self._answer: tuple[int, Any, dict[str, str]] | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._answer = self._call()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def answer(self) -> tuple[int, Any, dict[str, str]]:
        self._thread.join(PATIENCE_S)
        assert self._answer is not None
        return self._answer


@contextmanager
def running(settings: Settings) -> Iterator[Running]:
    """A service until the block ends; its thread and workers are gone then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", ""))))
        one = Running()
        one.thread = threading.Thread(target=one.run, args=(settings,), daemon=True)
        one.thread.start()
        try:
            assert one.begun.wait(PATIENCE_S)
            yield one
        finally:
            if one.thread.is_alive():
                one.tell_to_end()
                one.tell_to_end()
            one.thread.join(PATIENCE_S)
            assert not one.thread.is_alive()


def fake(source: dict[str, Any] | None = None, **settings: Any) -> Settings:
    """Settings of a service that generates nothing."""
    given = {"devices": ("cpu",), "level": "turbo", **settings}
    return Settings(source=json.dumps(source or {}), maker=fake_generator.MAKER, **given)
