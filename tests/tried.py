"""What a try's process does, in a module that such a process imports in no time."""

from __future__ import annotations

import os

from sdopt.errors import SdoptError


def answers(level: str) -> dict[str, object]:
    return {"level": level, "pid": os.getpid()}


def dies(_: str) -> dict[str, object]:
    os._exit(7)


def refuses(level: str) -> dict[str, object]:
    raise SdoptError(f"level {level!r}: not on this card")
