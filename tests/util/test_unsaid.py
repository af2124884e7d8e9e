"""A notice is left out by its words, by its logger and for a while."""

from __future__ import annotations

import logging

import pytest

from sdopt.util.unsaid import unsaid


def test_only_those_words_of_that_logger_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    one, other = logging.getLogger("sdopt-test.one"), logging.getLogger("sdopt-test.other")
    with unsaid("needs paint", one.name):
        one.warning("red %s", "needs paint")
        one.warning("something else")
        other.warning("needs paint")
    one.warning("needs paint again")
    assert caplog.messages == ["something else", "needs paint", "needs paint again"]


def test_what_cannot_be_formatted_is_left_to_the_handlers() -> None:
    one, seen = logging.getLogger("sdopt-test.one"), list[logging.LogRecord]()
    handler = logging.Handler()
    handler.emit = seen.append  # type: ignore[method-assign]
    one.addHandler(handler)
    one.propagate = False
    try:
        with unsaid("needs paint", one.name):
            one.warning("odd", FutureWarning)
            one.warning("needs paint", FutureWarning)
    finally:
        one.removeHandler(handler)
        one.propagate = True
    assert [record.msg for record in seen] == ["odd"]
