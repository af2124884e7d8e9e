"""Notices of libraries that say nothing to a user of this package, left out by their words."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unsaid(words: str, *loggers: str) -> Iterator[None]:
    """Inside, those loggers leave out what holds the words, and nothing else."""

    def keeps(record: logging.LogRecord) -> bool:
        return words not in _message(record)

    found = [logging.getLogger(name) for name in loggers]
    for logger in found:
        logger.addFilter(keeps)
    try:
        yield
    finally:
        for logger in found:
            logger.removeFilter(keeps)


def _message(record: logging.LogRecord) -> str:
    """As a handler has it; a handler reports what cannot be formatted, a filter would raise it."""
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        return str(record.msg)
