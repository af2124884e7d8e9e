"""A line now and then while something takes longer than a few seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

FIRST_LINE_S = 4.0
NEXT_LINES_S = 15.0


class Progress:
    """Writes '<what>: 34 s ...' to a stream that pytest does not capture."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Report on `what` after FIRST_LINE_S and then every NEXT_LINES_S until it is done."""
        done = threading.Event()
        thread = threading.Thread(target=self._report, args=(what, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _report(self, what: str, done: threading.Event) -> None:
        start = time.monotonic()
        pause, before = FIRST_LINE_S, "\n"
        while not done.wait(pause):
            self.stream.write(f"{before}  {what}: {time.monotonic() - start:.0f} s ...\n")
            self.stream.flush()
            pause, before = NEXT_LINES_S, ""
