"""A loopback server that speaks as much of GitHub's API as the report of a run needs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

BOT = "github-actions[bot]"


@dataclass(kw_only=True)
class FakeGitHub:
    """One pull request with its comments, and the answers that go wrong.

    `failures` are (method, status, headers, done): such an answer is given once, and `done` is
    whether the request took effect all the same.
    """

    port: int = 0
    head: str = ""
    state: str = "open"
    comments: list[dict[str, Any]] = field(default_factory=list)
    statuses: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[tuple[str, int, dict[str, str], bool]] = field(default_factory=list)
    log: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and the token of each request."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, body: str, login: str = BOT) -> dict[str, Any]:
        comment = {"id": len(self.comments) + 1, "body": body, "user": {"login": login}}
        self.comments.append(comment)
        return comment

    def answer(self, method: str, target: str, content: Any) -> tuple[int, Any]:
        address = urlsplit(target)
        path = address.path.removeprefix("/repos/owner/name/")
        match method, path.split("/"):
            case "GET", ["pulls", _]:
                return 200, {"state": self.state, "head": {"sha": self.head}}
            case "GET", ["issues", _, "comments"]:
                query = parse_qs(address.query)
                size, page = int(query["per_page"][0]), int(query["page"][0])
                return 200, self.comments[size * (page - 1) : size * page]
            case "POST", ["issues", _, "comments"]:
                return 201, self.add(content["body"])
            case "PATCH", ["issues", "comments", number]:
                self.comments[int(number) - 1]["body"] = content["body"]
                return 200, self.comments[int(number) - 1]
            case "POST", ["statuses", commit]:
                self.statuses[commit] = content
                return 201, content
        return 404, {"message": "Not Found"}


@contextmanager
def serving() -> Iterator[FakeGitHub]:
    """The API on a free port of the loopback interface."""
    github = FakeGitHub()

    class Handler(_Handler):
        of = github

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    github.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield github
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    of: FakeGitHub

    def _serve(self) -> None:
        method, target = self.command, self.path
        self.of.log.append((method, target, self.headers.get("Authorization", "")))
        length = int(self.headers.get("Content-Length") or 0)
        content = json.loads(self.rfile.read(length)) if length else None
        failure = next((one for one in self.of.failures if one[0] == method), None)
        status, headers, answer = 0, dict[str, str](), None
        if failure is not None:
            self.of.failures.remove(failure)
            _, status, headers, done = failure
            if done:
                self.of.answer(method, target, content)
        else:
            status, answer = self.of.answer(method, target, content)
        body = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PATCH = _serve

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""
