"""What the front and a worker say to each other: one JSON object a line, over a socket pair.

To a worker: `load`, then `warm`, then any number of `generate`. From it: `loaded`, `ready`, and for
each batch `done`; or `unusable`, before it ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

MOST_BYTES = 2**22


def line(kind: str, /, **values: Any) -> bytes:
    """One message."""
    return json.dumps({"is": kind, **values}).encode() + b"\n"


def parsed(content: bytes) -> dict[str, Any]:
    """The message in a line."""
    message: dict[str, Any] = json.loads(content)
    return message


def lines(file: Iterable[bytes]) -> Iterable[dict[str, Any]]:
    """Each message of a worker's side, until the other side is gone."""
    for content in file:
        yield parsed(content)
