"""What every request passes: its id, and the name by which it called this host."""

from __future__ import annotations

import ipaddress
import re
import uuid
from typing import Any

from sdopt.service.failures import ApiError

ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
HEADER = b"x-request-id"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def request_id(request: Any) -> str:
    """The client's own x-request-id if it is a plain word, else a new one."""
    found: str = request.scope["sdopt.request_id"]
    return found


class Door:
    """Around an ASGI application. On loopback another Host than this machine's names is refused:

    a foreign page whose name was pointed here would send its own.
    """

    def __init__(self, app: Any, host: str) -> None:
        self.app = app
        self.names = (*LOOPBACK_NAMES, host) if is_loopback(host) else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request, or the application's life."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(HEADER, b"").decode("latin-1")
        own = given if ID.fullmatch(given) else uuid.uuid4().hex
        scope["sdopt.request_id"] = own

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {
                    **message,
                    "headers": [*message.get("headers", ()), (HEADER, own.encode())],
                }
            await send(message)

        name = _without_port(headers.get(b"host", b"").decode("latin-1"))
        if self.names is not None and name not in self.names:
            error = ApiError(421, "wrong_host", f"this host is called {self.names[0]}")
            start = {
                "type": "http.response.start",
                "status": error.status,
                "headers": [(b"content-type", b"application/json")],
            }
            await sent(start)
            await sent({"type": "http.response.body", "body": error.body})
            return
        await self.app(scope, receive, sent)


def _without_port(host: str) -> str:
    return re.sub(r":[0-9]*$", "", host).lower()
