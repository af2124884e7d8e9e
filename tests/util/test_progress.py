"""Something slow is reported on; something quick is not, and nothing goes on afterwards."""

from __future__ import annotations

import io
import threading

import pytest

from sdopt.util import progress
from sdopt.util.progress import FIRST_LINE_S, NEXT_LINES_S, Progress, Steps

PATIENCE_S = 60.0


class DoneAfter:
    """An event that is set at its n-th wait, and notes how long it was to wait each time."""

    def __init__(self, waits: int) -> None:
        self.waits = waits
        self.pauses: list[float] = []

    def wait(self, pause: float) -> bool:
        self.pauses.append(pause)
        return len(self.pauses) > self.waits


class Signalling(io.StringIO):
    """A stream that tells when it was flushed."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed = threading.Event()

    def flush(self) -> None:
        super().flush()
        self.flushed.set()


def report(
    waits: int, own: Steps | None = None, tests: Steps | None = None
) -> tuple[str, list[float]]:
    """What is written about something that lasts that many pauses, and those pauses."""
    stream, done = io.StringIO(), DoneAfter(waits)
    progressing = Progress(stream)
    progressing.tests = tests or Steps()
    progressing._report("[final] compiling", done, own or Steps())  # type: ignore[arg-type]
    return stream.getvalue(), done.pauses


def test_the_first_line_comes_early_and_the_next_ones_seldom() -> None:
    assert report(3)[1] == [FIRST_LINE_S, NEXT_LINES_S, NEXT_LINES_S, NEXT_LINES_S]


def test_a_line_says_what_and_for_how_long() -> None:
    assert report(1)[0] == "\n  [final] compiling: 0 s ...\n"


def steps(total: int, done: int, seconds: float) -> Steps:
    """So many of them done in that time."""
    made = Steps(total)
    made.done, made.start = done, made.start - seconds
    return made


def test_a_line_says_what_is_left_where_the_number_of_steps_is_known() -> None:
    told, _ = report(1, own=steps(5, 2, 20.0), tests=steps(11, 1, 30.0))
    assert told == (
        "\n  [final] compiling: 20 s, 3 of 5, about 30 s left, test 2 of 11, about 5 min left\n"
    )
    assert report(1, tests=steps(11, 0, 9.0))[0].endswith("compiling: 0 s, test 1 of 11\n")


def test_whoever_is_reported_on_counts_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE_S", 0.2)
    stream = Signalling()
    with Progress(stream).during("[final] images", 3) as advance:
        advance()
        assert stream.flushed.wait(PATIENCE_S)
    assert "[final] images: 0 s, 2 of 3, about 0 s left" in stream.getvalue()


def test_only_the_first_line_leaves_pytests_own() -> None:
    assert report(2)[0] == "\n" + 2 * "  [final] compiling: 0 s ...\n"


def test_what_is_done_at_once_writes_nothing() -> None:
    stream = io.StringIO()
    with Progress(stream).during("[final] images"):
        pass
    assert stream.getvalue() == ""


def test_a_line_is_written_and_flushed_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE_S", 0.0)
    stream = Signalling()
    with Progress(stream).during("[final] images"):
        flushed = stream.flushed.wait(PATIENCE_S)
    assert flushed
    assert "[final] images: 0 s ..." in stream.getvalue()


def test_an_error_passes_and_ends_the_reporting() -> None:
    before = threading.active_count()
    with pytest.raises(KeyError, match="mine"), Progress(io.StringIO()).during("[final] images"):
        raise KeyError("mine")
    assert threading.active_count() == before
