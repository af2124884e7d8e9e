"""A line now and then while something takes longer than a few seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

FIRST_LINE_S = 2.0
NEXT_LINES_S = 15.0
IN_SECONDS_S = 90.0
"""Up to which the time left is told in seconds."""


class Steps:
    """How many of a known number of steps are done, and since when."""

    def __init__(self, total: int = 0) -> None:
        self.total, self.done, self.start = total, 0, time.monotonic()

    def told(self, what: str) -> str:
        """', test 3 of 9, about 40 s left'; nothing without a total."""
        if not self.total:
            return ""
        return f", {what}{min(self.done + 1, self.total)} of {self.total}{self.left()}"

    def left(self, about: str = "about") -> str:
        """', about 40 s left', if a first step says how long one takes."""
        if not self.done:
            return ""
        left = (time.monotonic() - self.start) / self.done * (self.total - self.done)
        return f", {about} {_duration(left)} left"


class Progress:
    """Writes '<what>: 34 s, test 3 of 9, about 40 s left' to a stream that pytest does not capture.

    `tests` are those of the whole run; whoever runs them counts them.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.tests = Steps()

    @contextmanager
    def during(self, what: str, steps: int = 0) -> Iterator[Callable[[], None]]:
        """Report on `what` after FIRST_LINE_S and then every NEXT_LINES_S until it is done.

        What is yielded counts one of the steps as done, if their number is known.
        """
        done, own = threading.Event(), Steps(steps)
        thread = threading.Thread(target=self._report, args=(what, done, own), daemon=True)
        thread.start()

        def advance() -> None:
            own.done += 1

        try:
            yield advance
        finally:
            done.set()
            thread.join()

    def _report(self, what: str, done: threading.Event, own: Steps) -> None:
        pause, before = FIRST_LINE_S, "\n"
        while not done.wait(pause):
            seconds = f"{time.monotonic() - own.start:.0f} s"
            at = own.told("") + self.tests.told("test ")
            self.stream.write(f"{before}  {what}: {seconds}{at or ' ...'}\n")
            self.stream.flush()
            pause, before = NEXT_LINES_S, ""


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < IN_SECONDS_S else f"{seconds / 60:.0f} min"
