"""`--sdopt-compile-cache=FILE`: compiled code taken from a file, which a passed run renews.

Nothing here is judged: a file that does not fit costs time, not the run.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sdopt.bench.session import Session
from sdopt.compile_cache import archive, files, place
from sdopt.compile_cache.identity import made_here
from sdopt.errors import SdoptError
from sdopt.util.files import cause

NAME = "sdopt-compile-cache"


def begin(config: pytest.Config, session: Session) -> None:
    """If the option was given: point both compilers at a private folder before anything compiles.

    Raises UsageError if there can be no such folder.
    """
    if config.option.sdopt_compile_cache is None:
        return
    file = config.option.sdopt_compile_cache.absolute()
    try:
        archive.refuse_another(file)
        cache = SessionCache(file, session, config)
    except SdoptError as error:
        raise pytest.UsageError(f"--sdopt-compile-cache: {error}") from error
    except OSError as error:
        raise pytest.UsageError(
            f"--sdopt-compile-cache: no private folder can be made in {place.root()}: "
            f"{cause(error)}; let $XDG_CACHE_HOME name a folder that can be written"
        ) from error
    config.pluginmanager.register(cache, NAME)


class SessionCache:
    """The compile cache of one session: what came of the file, and what becomes of it."""

    def __init__(self, file: Path, session: Session, config: pytest.Config) -> None:
        self.file, self.session = file, session
        self.placed: place.Placed | None = None
        self.note = self.warning = ""
        try:
            self.placed = place.placed(self.file)
            self.folder, self.header = self.placed.folder, str(self.placed)
        except SdoptError as error:
            self.header = f"{error}: refused, it will be rebuilt if this run passes"
            self.folder = place.make_folder()  # goes with the session
            config.add_cleanup(partial(shutil.rmtree, self.folder, ignore_errors=True))
        environment = pytest.MonkeyPatch()
        config.add_cleanup(environment.undo)
        for name, value in place.variables(self.folder).items():
            environment.setenv(name, value)

    def pytest_report_header(self) -> str:
        """What the file is, or why it was refused."""
        return f"sdopt: {self.header}"

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the file anew if the run passed and compiled something that it lacks."""
        if session.exitstatus != pytest.ExitCode.OK:
            self.note = f"compile cache {self.file} was left as it is: this run did not pass"
            return
        contents = files.kept(self.folder)
        known = self.placed.manifest.files if self.placed else {}
        added = len(contents.keys() - known)
        if added:
            self._renew(contents, added)
        elif not self.placed:
            self.note = f"compile cache {self.file} was not written: nothing was compiled"

    def _renew(self, contents: dict[str, bytes], added: int) -> None:
        before = self.placed.manifest.levels if self.placed else ()
        try:
            archive.pack(
                self.file,
                contents,
                made_for=made_here(),
                levels=tuple(dict.fromkeys((*before, *self.session.measured))),
                source=self.session.run.source.name,
            )
        except OSError as error:
            self.warning = (
                f"warning: compile cache {self.file} could not be written ({cause(error)}); the "
                "next run compiles again. Name a file whose folder can be written"
            )
            return
        size_mb = self.file.stat().st_size / 1e6
        self.note = (
            f"stored compile cache {self.file}: {size_mb:.1f} MB, {len(contents)} files, "
            f"{added} of them new"
        )

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """What became of the file."""
        if self.warning:
            terminalreporter.write_line(self.warning, yellow=True)
        elif self.note:
            terminalreporter.write_line(self.note)
