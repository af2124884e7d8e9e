"""Notices of libraries that say nothing to a user of this package, left out by their words."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unsaid(words: str, *loggers: str) -> Iterator[None]:
    """Inside, those loggers leave out what holds the words, and nothing else."""

    def keeps(record: logging.LogRecord) -> bool:
        return words not in record.getMessage()

    found = [logging.getLogger(name) for name in loggers]
    for logger in found:
        logger.addFilter(keeps)
    try:
        yield
    finally:
        for logger in found:
            logger.removeFilter(keeps)
