"""The few calls of GitHub's API that a report needs, over the standard library alone.

A token goes to one host: redirections are not followed, and nothing but https is spoken beyond this
machine. https://docs.github.com/en/rest
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sdopt.bench.report.comment import MARKER
from sdopt.errors import SdoptError

TRIES = 5
LONGEST_WAIT_S = 60.0
TIMEOUT_S = 30.0
MOST_BYTES = 16 * 2**20
A_PAGE = 100
MOST_PAGES = 100
AGAIN = (429, 500, 502, 503, 504)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
BOT = "github-actions[bot]"
"""Who comments with the token of a workflow."""


class ApiError(SdoptError):
    """A call of the API that failed; `status` is 0 where there was no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would send the token along, to whichever host."""

    def redirect_request(self, *_: Any) -> None:
        """None leaves the answer as it is, which then is an error."""
        return


@dataclass(frozen=True, kw_only=True)
class GitHub:
    """One repository, 'owner/name'. Raises ApiError for what cannot be done."""

    repository: str
    token: str
    url: str = "https://api.github.com"
    author: str = BOT
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme != "https" and parts.hostname not in LOOPBACK:
            raise ApiError(f"{self.url} is no https address: the token is not sent there")

    def head_of(self, pull_request: int) -> str:
        """The newest commit of an open pull request."""
        found = self._call("GET", f"pulls/{pull_request}")
        if found.get("state") != "open":
            raise ApiError(f"pull request {pull_request} is not open")
        return str(found["head"]["sha"])

    def tell(self, pull_request: int, body: str) -> str:
        """Write the comment, or write it anew where there is one; 'created' or 'edited'.

        A first try that seemed to fail may have got through: before another one, look again.
        """
        for attempt in range(TRIES):
            if existing := self._own_comment(pull_request):
                self._call("PATCH", f"issues/comments/{existing}", {"body": body})
                return "edited"
            try:
                path = f"issues/{pull_request}/comments"
                self._call("POST", path, {"body": body}, tries=1)
                return "created"
            except ApiError as error:
                if attempt == TRIES - 1 or error.status not in (0, *AGAIN):
                    raise
                self.sleep(_wait(attempt, None))
        raise AssertionError("unreachable")

    def set_status(self, commit: str, *, passed: bool, words: str, link: str) -> None:
        """The check beside the commit, which a branch rule can require."""
        content = {
            "state": "success" if passed else "failure",
            "context": "sdopt GPU gate",
            "description": words[:140],
            **({"target_url": link} if link else {}),
        }
        self._call("POST", f"statuses/{commit}", content)

    def _own_comment(self, pull_request: int) -> int | None:
        """The comment that begins with the marker; anybody may write one that looks like it."""
        for page in range(1, MOST_PAGES + 1):
            path = f"issues/{pull_request}/comments?per_page={A_PAGE}&page={page}"
            comments = self._call("GET", path)
            for one in comments:
                by = (one.get("user") or {}).get("login")
                if by == self.author and str(one.get("body")).startswith(MARKER):
                    return int(one["id"])
            if len(comments) < A_PAGE:
                return None
        return None

    def _call(
        self, method: str, path: str, content: Mapping[str, Any] | None = None, tries: int = TRIES
    ) -> Any:
        request = urllib.request.Request(
            f"{self.url}/repos/{self.repository}/{path}",
            method=method,
            data=None if content is None else json.dumps(content).encode(),
            headers={
                "Accept": "application/vnd.github+json",
                "Authorization": f"Bearer {self.token}",
                "Content-Type": "application/json",
                "User-Agent": "sdopt",
                "X-GitHub-Api-Version": "2022-11-28",
            },
        )
        opener = urllib.request.build_opener(_NoRedirect)
        for attempt in range(tries):
            asked_for = None
            try:
                with opener.open(request, timeout=TIMEOUT_S) as answer:
                    return _parsed(method, path, answer.read(MOST_BYTES + 1))
            except urllib.error.HTTPError as error:
                with error:
                    asked_for = error.headers.get("Retry-After")
                failure = ApiError(f"{method} {path}: status {error.code}", error.code)
                if error.code not in AGAIN and not asked_for:
                    raise failure from error
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                failure = ApiError(f"{method} {path}: no answer ({error})")
            if attempt < tries - 1:
                self.sleep(_wait(attempt, asked_for))
        raise failure


def _parsed(method: str, path: str, content: bytes) -> Any:
    if len(content) > MOST_BYTES:
        raise ApiError(f"{method} {path}: the answer is larger than {MOST_BYTES} bytes")
    try:
        return json.loads(content or b"null")
    except ValueError as error:
        raise ApiError(f"{method} {path}: the answer is no JSON") from error


def _wait(attempt: int, asked_for: str | None) -> float:
    """Seconds before the next try: as the server asked, else 1, 2, 4 and so on."""
    wanted = float(asked_for) if asked_for and asked_for.isdecimal() else 2.0**attempt
    return min(wanted, LONGEST_WAIT_S)
