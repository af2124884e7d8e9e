"""Run a service until it is told to end: uvicorn on one socket, signals, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import uvicorn

from sdopt.errors import SdoptError
from sdopt.service import failures
from sdopt.service.app import app_of
from sdopt.service.connection import KEEP_ALIVE_S, Connection, Crowd, most_connections
from sdopt.service.door import is_loopback
from sdopt.service.logs import log, to_stderr
from sdopt.service.service import Service
from sdopt.service.settings import Settings
from sdopt.util.files import cause
from sdopt.util.text import shown

BACKLOG = 1024
ANSWERS_S = 3
"""After the time that queued images are given, for the errors of those that were not made."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `serve`: uvicorn raises them again at its end, and dies of them."""
        yield


Started = Callable[[str, Callable[[], None]], None]
"""Is told the address as soon as it is bound, and what to call, in the loop, for an orderly end."""


def run(settings: Settings, started: Started) -> int:
    """Serve until SIGTERM or SIGINT; 0 after an orderly end. Raises SdoptError if it cannot."""
    to_stderr()
    sock = bound(settings.host, settings.port)
    with contextlib.closing(sock):
        loop_factory = _fast_loop()
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(serve(settings, sock, started))


def bound(host: str, port: int) -> socket.socket:
    """A listening socket's address, taken. Raises SdoptError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)  # from here on clients wait instead of being refused
    except (OSError, OverflowError, TypeError, UnicodeError) as error:
        sock.close()
        raise SdoptError(
            f"cannot listen on {shown(host, 80)}, port {port}: {cause(error)}; "
            "give another --host or --port"
        ) from error
    return sock


async def serve(
    settings: Settings,
    sock: socket.socket,
    started: Started,
    signals: Sequence[signal.Signals] = SIGNALS,
) -> int:
    """Until one of the signals, or until no worker can be had at all."""
    service = Service(settings)
    crowd = Crowd(
        most=most_connections(len(settings.devices)),
        count=lambda code: service.metrics.errors.labels(code).inc(),
    )
    protocol: Any = partial(Connection, crowd=crowd)
    config = uvicorn.Config(
        app_of(service),
        http=protocol,
        ws="none",  # its connections would have no limits
        log_config=None,
        access_log=False,
        lifespan="off",
        backlog=BACKLOG,
        timeout_keep_alive=round(KEEP_ALIVE_S),
        timeout_graceful_shutdown=round(settings.grace_s) + ANSWERS_S,
        server_header=False,
        proxy_headers=False,
    )
    server = _Server(config)
    end = _ending(server, service)
    for number in signals:
        asyncio.get_running_loop().add_signal_handler(number, end)
    service.start()
    url = _url(sock)
    if not is_loopback(settings.host) and not settings.api_keys:
        log("reachable from other machines without authentication", logging.WARNING, url=url)
    log("listening", url=url, level=settings.level, devices=list(settings.devices))
    started(url, end)
    watching = asyncio.create_task(_end_when_fatal(server, service))
    await server.serve(sockets=[sock])
    watching.cancel()
    await service.stop()
    log("ended", fatal=service.fatal)
    if service.fatal is not None:
        raise SdoptError(f"sdopt serve cannot go on: {service.fatal}")
    return 0


def _ending(server: uvicorn.Server, service: Service) -> Callable[[], None]:
    """Called once it finishes what is queued; called again it does not wait for that."""
    loop = asyncio.get_running_loop()
    limit_s = service.settings.grace_s

    def end() -> None:
        if service.stopping:
            service.fail_waiting(failures.shutting_down())
            return
        log("stopping", queued=len(service.queue), limit_s=limit_s)
        service.refuse_new()
        server.should_exit = True
        loop.call_later(limit_s, service.fail_waiting, failures.shutting_down())

    return end


async def _end_when_fatal(server: uvicorn.Server, service: Service) -> None:
    await service.ended.wait()
    service.fail_waiting(failures.not_ready())
    server.should_exit = True


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop where it is installed: its writes take less of a response's time."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
