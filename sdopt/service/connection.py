"""What one connection may take of the front before a request is whole: bytes, time, and a place."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sdopt.errors import SdoptError
from sdopt.service.failures import ApiError
from sdopt.service.logs import log

MOST_HEAD_BYTES = 2**16
"""Of request line and headers; of a body's trailers and chunk sizes too."""
MOST_HEADERS = 128
HEAD_S = 10.0
"""How long a client may take to send a head, and the rest of a body that was answered already."""
KEEP_ALIVE_S = 75.0
"""How long a connection may be silent between two requests."""
UNREAD_S = 120.0
"""How long nothing of an answer may leave this process; the system holds some MB of it already."""
MOST_PIPELINED = 16
"""Requests that a client may send before the first one is answered."""
MOST_CONNECTIONS = 512
LINGER_S = 1.0
"""A refused client may still be sending: it could not read the answer if its bytes were refused."""
PIECE_BYTES = 4096
SPARE_CONNECTIONS = 16
"""Beyond the limit, that are told so; further ones are closed at once."""
RESERVED_FILES, FILES_A_WORKER = 64, 4
TOLD_EVERY_S = 60.0


def most_connections(workers: int) -> int:
    """Below the limit of open files. Raises SdoptError if that leaves none."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MOST_CONNECTIONS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    reserved = RESERVED_FILES + SPARE_CONNECTIONS + FILES_A_WORKER * workers
    if files <= reserved:
        raise SdoptError(
            f"this process may open {files} files, too few to serve; "
            f"ulimit -n {reserved + MOST_CONNECTIONS}"
        )
    return min(MOST_CONNECTIONS, files - reserved)


@dataclass(kw_only=True)
class Crowd:
    """All connections of a service: how many there may be, and which were refused."""

    most: int
    count: Callable[[str], None]
    """Is told the code of each refusal."""
    _told: dict[str, float] = field(default_factory=dict)
    _untold: dict[str, int] = field(default_factory=dict)

    def refused(self, code: str) -> None:
        """Log a code once in a while: whoever is refused must not fill the log."""
        self.count(code)
        now = time.monotonic()
        if now - self._told.get(code, -math.inf) < TOLD_EVERY_S:
            self._untold[code] = self._untold.get(code, 0) + 1
            return
        self._told[code] = now
        before = self._untold.pop(code, 0)
        log("connection refused", logging.WARNING, code=code, unlogged_before=before)


class Connection(HttpToolsProtocol):
    """uvicorn's, which waits for ever for a head of any size, and for a client that reads nothing.

    One timer at a time says what the client has to do next: send a head, send the rest of a body,
    or send another request. While it is answered there is none; `app` limits a body's time.
    """

    def __init__(self, *arguments: Any, crowd: Crowd, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.crowd = crowd
        self._in_head = self._in_body = self._refused = False
        self.headers = []
        self._held = 0
        """Bytes since the last one of a body, or since the last request was whole."""
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    # What the transport says

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse it if there are too many."""
        super().connection_made(transport)
        excess = len(self.connections) - self.crowd.most
        if excess <= 0:
            self._wait(HEAD_S)
            return
        if excess > SPARE_CONNECTIONS:
            self._hang_up("too_many_connections")
        else:
            message = f"{self.crowd.most} connections are open, the most; come again"
            self._refuse(ApiError(503, "too_many_connections", message, retry_after_s=HEAD_S))

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of its timers."""
        self._wait(None)
        self._stop_unread()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse in pieces, so that what is too large is noticed before it is kept."""
        for begin in range(0, len(data), PIECE_BYTES):
            if self._refused or self.transport.is_closing():
                return
            self._parse(data[begin : begin + PIECE_BYTES])

    def pause_writing(self) -> None:
        """More of an answer waits than the system takes."""
        super().pause_writing()
        self._watch_unread()

    def resume_writing(self) -> None:
        """The client has read it."""
        super().resume_writing()
        self._stop_unread()

    # What the parser says

    def on_message_begin(self) -> None:
        """A head begins, maybe behind another request."""
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        """Headers are whole; uvicorn begins to answer."""
        self._in_head, self._in_body, self._held = False, True, 0
        self._wait(None)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """`app` counts these bytes, and reads no more than it takes."""
        self._held = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._in_body, self._held = False, 0
        super().on_message_complete()
        if self.cycle.response_complete:  # answered before its body had come
            self._wait(KEEP_ALIVE_S)

    def on_response_complete(self) -> None:
        """An answer is written; the client's turn."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_unread()
        elif self.cycle.response_complete and not self._in_head:  # else another one is behind it
            self._wait(HEAD_S if self._in_body else KEEP_ALIVE_S)

    # Limits

    def _parse(self, piece: bytes) -> None:
        if not self._in_body:
            self._expect_head()
        self._held += len(piece)
        super().data_received(piece)
        is_whole = not (self._in_head or self._in_body)
        if self._held > MOST_HEAD_BYTES or (not is_whole and len(self.headers) > MOST_HEADERS):
            message = f"more than {MOST_HEAD_BYTES} bytes or {MOST_HEADERS} headers before the body"
            self._refuse(ApiError(431, "head_too_large", message))
        elif len(self.pipeline) > MOST_PIPELINED:
            self._hang_up("too_many_pipelined")

    def _expect_head(self) -> None:
        if not self._in_head:
            self._in_head = True
            self._wait(HEAD_S)

    def _wait(self, seconds: float | None) -> None:
        """For the client, in place of what was waited for before."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None
        if seconds is not None and not self._refused:
            self._deadline = self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        if self._is_answering:
            self._wait(HEAD_S)  # another request is half here: its turn comes
        elif self._in_head:
            message = f"request line and headers did not come within {HEAD_S:g} s"
            self._refuse(ApiError(408, "head_too_slow", message))
        elif self._in_body:
            self._hang_up("body_too_slow")
        else:
            self.transport.close()
            self._watch_unread()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: ApiError) -> None:
        """Say why, unless an answer to something else is on its way, and hang up."""
        if self._is_answering:
            self._hang_up(error.code)
            return
        self.crowd.refused(error.code)
        self._wait(None)
        self._refused = True
        content = [STATUS_LINE[error.status], b"content-type: application/json\r\n"]
        for name, value in error.headers.items():
            content.append(f"{name}: {value}\r\n".encode())
        content.append(b"content-length: %d\r\nconnection: close\r\n\r\n" % len(error.body))
        self.transport.write(b"".join([*content, error.body]))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._deadline = self.loop.call_later(LINGER_S, self.transport.abort)

    def _hang_up(self, code: str) -> None:
        """Without an answer."""
        self.crowd.refused(code)
        self._refused = True
        self.transport.abort()

    def _watch_unread(self, before: int | None = None) -> None:
        """Hang up on a client that has read nothing since the last look."""
        waiting = self.transport.get_write_buffer_size()
        if before is not None and waiting >= before:
            self._hang_up("answer_unread")
        elif before is not None or self._unread is None:
            self._unread = self.loop.call_later(UNREAD_S, self._watch_unread, waiting)

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
        self._unread = None
