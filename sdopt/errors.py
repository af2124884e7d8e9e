"""The errors that a user's mistake or a broken file raises, in one place.

ValueError
└── SdoptError            every error of this package
    ├── UnknownNameError  a level, source or prompt word that does not exist
    ├── BrokenFileError   a baseline, history, prompt or model file that cannot be used
    ├── BusyError         a folder that another process writes into
    ├── SourceError       weights that cannot be had
    ├── UnsupportedCardError  a level whose kernels or graphs a device cannot run
    ├── OutOfMemoryError  a level that needs more memory than its device has free
    ├── MemoryLeftError   a freed level that gave its device memory not back
    ├── ForeignCacheError compiled code of another machine, version or kernels
    ├── RevisionError     a git revision that cannot be had
    ├── MissingToolError  a program that is needed and not installed
    └── WorkerError       a process of an A/B run that did not do its part
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class SdoptError(ValueError):
    """A mistake that the message names, with the choices and the next step."""


SHOWN = 80
"""Characters of a wrong name that a message repeats."""


class UnknownNameError(SdoptError):
    """A name that is none of the choices; the message lists them and the nearest one."""

    def __init__(
        self, kind: str, name: object, choices: Iterable[str], next_step: str = ""
    ) -> None:
        self.choices = tuple(choices)
        near = difflib.get_close_matches(str(name), self.choices, n=1)
        given = repr(name)
        if len(given) > SHOWN:
            given = f"{given[:SHOWN]}..."
        message = f"unknown {kind} {given}"
        if near:
            message += f" (did you mean {near[0]!r}?)"
        message += f"; choose from: {', '.join(self.choices)}"
        super().__init__(message + (f"; {next_step}" if next_step else ""))


class BrokenFileError(SdoptError):
    """A file that is missing, truncated or holds something else; it is left as it is.

    `path` is the one of several, where that was noted.
    """

    path: Path | None = None


class BusyError(SdoptError):
    """A folder that another process writes into."""


class SourceError(SdoptError):
    """A source of weights that cannot be loaded here."""


class UnsupportedCardError(SdoptError):
    """A level whose kernels or graphs this device cannot run."""


class OutOfMemoryError(SdoptError):
    """A level that needs more memory than its device has free."""


class MemoryLeftError(SdoptError):
    """A level whose pipeline is gone and whose device memory is not."""


class ForeignCacheError(SdoptError):
    """A compile cache that is of something else than what runs here; it is left as it is."""


class RevisionError(SdoptError):
    """A git revision that cannot be checked out here, or not be removed again."""


class MissingToolError(SdoptError):
    """A program of somebody else's that is needed here and not installed."""


class WorkerError(SdoptError):
    """A process of an A/B run that died, hung or could not do what it was asked."""
