"""One JSON object a line on stderr: what happened, without the prompts."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

NAME = "sdopt.service"
logger = logging.getLogger(NAME)


class JsonLines(logging.Formatter):
    """Text of a client is a JSON string here: it cannot begin a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "severity": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "told", {}),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)


def log(
    event: str, severity: int = logging.INFO, *, raised: Exception | None = None, **told: Any
) -> None:
    """What happened, and its values."""
    logger.log(severity, event, extra={"told": told}, exc_info=raised)


def to_stderr(level: int = logging.INFO) -> None:
    """Send the service's and uvicorn's lines there."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, least in ((NAME, level), ("uvicorn", logging.WARNING)):
        own = logging.getLogger(name)
        own.handlers, own.propagate = [handler], False
        own.setLevel(least)
