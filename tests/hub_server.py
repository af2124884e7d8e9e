"""A loopback server that speaks as much of the Hugging Face hub's protocol as downloads need."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass(kw_only=True)
class FakeHub:
    """Repositories by id, each with folders by commit and commits by branch."""

    port: int = 0
    commits: dict[str, dict[str, Path]] = field(default_factory=dict)
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut_short: set[str] = field(default_factory=set)
    """File names of which only the first half is sent."""
    log: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each request."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, repo: str, folder: Path, commit: str, branch: str = "main") -> None:
        self.commits.setdefault(repo, {})[commit] = folder
        self.branches.setdefault(repo, {})[branch] = commit

    def fetched(self) -> list[str]:
        """The files whose content was sent."""
        return [path for method, path in self.log if method == "GET" and "/resolve/" in path]


@contextmanager
def serving() -> Iterator[FakeHub]:
    """A hub on a free port of the loopback interface."""
    hub = FakeHub()

    class Handler(_Handler):
        of = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    of: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.of.log.append((self.command, path))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repo, kind, revision = "/".join(parts[2:4]), parts[4], parts[5]
            if (commit := self._commit(repo, revision)) is not None:
                self._send_json(self._described(repo, kind, commit))
            return
        repo, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        if (commit := self._commit(repo, revision)) is not None:
            self._send_file(self.of.commits[repo][commit] / name, commit, with_body)

    def _commit(self, repo: str, revision: str) -> str | None:
        """The commit; None after an error was sent."""
        hub = self.of
        if repo in hub.gated:
            return self._fail(401, "GatedRepo", f"Access to model {repo} is restricted.")
        if repo not in hub.commits:
            return self._fail(401, "RepoNotFound", "Repository not found")
        commit = hub.branches[repo].get(revision, revision)
        if commit not in hub.commits[repo]:
            return self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _described(self, repo: str, kind: str, commit: str) -> object:
        folder = self.of.commits[repo][commit]
        names = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file()]
        if kind == "revision":
            return {"id": repo, "sha": commit, "siblings": [{"rfilename": n} for n in names]}
        return [
            {
                "type": "file",
                "path": name,
                "size": (folder / name).stat().st_size,
                "oid": _etag(folder / name),
            }
            for name in names
        ]

    def _send_file(self, path: Path, commit: str, with_body: bool) -> None:
        if not path.is_file():
            self._fail(404, "EntryNotFound", "Entry not found")
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{_etag(path)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content)))
        if path.name in self.of.cut_short:
            self.close_connection = True
            content = content[: len(content) // 2]
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def _send_json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _fail(self, status: int, code: str, message: str) -> None:
        content = json.dumps({"error": message}).encode()
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
