"""What a request is refused or failed with: OpenAI's error object and an HTTP status."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

INVALID, AUTHENTICATION = "invalid_request_error", "authentication_error"
RATE_LIMIT, SERVER = "rate_limit_error", "server_error"


class ApiError(Exception):
    """An answer other than an image; `code` is one word for programs, and for the metrics."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.retry_after_s = retry_after_s

    @property
    def kind(self) -> str:
        """OpenAI's `type`."""
        if self.status == 401:
            return AUTHENTICATION
        if self.status == 429:
            return RATE_LIMIT
        return SERVER if self.status >= 500 else INVALID

    @property
    def body(self) -> bytes:
        """As OpenAI's clients read it."""
        told = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": told}).encode()

    @property
    def headers(self) -> Mapping[str, str]:
        """When to come again, in whole seconds."""
        if self.retry_after_s is None:
            return {}
        return {"retry-after": str(max(1, math.ceil(self.retry_after_s)))}


def invalid(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """A value that cannot be used."""
    return ApiError(400, code, message, param=param)


def worker_died(device: str) -> ApiError:
    """The process that was generating the image has ended."""
    return ApiError(
        500, "worker_died", f"the worker of {device} ended while it generated this; send it again"
    )


def not_ready(retry_after_s: float = 5.0) -> ApiError:
    """No worker can generate yet, or any more."""
    return ApiError(
        503,
        "not_ready",
        "no worker is ready; see /healthz and come again",
        retry_after_s=retry_after_s,
    )


def shutting_down() -> ApiError:
    """The service ends, and this was not done in time."""
    return ApiError(503, "shutting_down", "the service is shutting down; send it again later")
