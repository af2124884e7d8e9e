"""How a failure is shown: a verdict by its message, a raising level by one traceback."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from sdopt.bench.plugin.keys import REACHED
from sdopt.errors import OutOfMemoryError, SdoptError, SourceError

if TYPE_CHECKING:
    from sdopt.bench.session import Session

MODULES = ("sdopt.pipelines.pipeline", "sdopt.bench.own.pipeline")
OF_A_LEVEL = "sdopt_level_raised"
"""The attribute of reports whose failure is the level's."""


class Raised:
    """Tells failures of a level from those of the suite, and shows both without what hides them."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.first: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[Any]
    ) -> Generator[None, Any, Any]:
        """Judge the level at its first such failure, and shorten the others."""
        report: Any = yield
        if call.excinfo and report.failed and "gate" in getattr(item, "fixturenames", ()):
            level = raising_level(call.excinfo)
            if level is not None:
                self._note(level, call.excinfo.value, item, report)
            elif item.config.option.tbstyle != "long":
                _shorten(call.excinfo, item, report)
        return report

    def _note(self, level: str, error: BaseException, item: pytest.Item, report: Any) -> None:
        try:
            gate = self.session.gate
        except SdoptError:
            return  # broken limits or counts: every test names that file
        setattr(report, OF_A_LEVEL, True)
        what = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        if level in self.first:
            report.longrepr = (
                f"[{level}] was not judged: its pipeline raised {what}\n"
                f"  the traceback stands at {self.first[level]}"
            )
        else:
            self.first[level] = item.nodeid
            verdict = gate.raised(level, what)
            item.user_properties.append((f"sdopt {verdict.metric}", verdict.outcome.value))
            report.sections.append(("verdict", verdict.message))
        self.session.judged.append(item.nodeid)


def _shorten(excinfo: pytest.ExceptionInfo[Any], item: pytest.Item, report: Any) -> None:
    """Show what a verdict or a named error says alone, whatever --tb the project has.

    Its traceback is the suite's, and pytest's account of an `assert` prints whole arrays.
    """
    failed = [one.message for one in item.stash.get(REACHED, []) if not one.passed]
    firsts = [message.partition("\n")[0] for message in failed]  # pytest indents the others
    if isinstance(excinfo.value, AssertionError) and any(m in str(excinfo.value) for m in firsts):
        said = "\n".join(failed)
    elif isinstance(excinfo.value, SdoptError):
        said = str(excinfo.value)
    else:
        return
    shown: Any = excinfo.getrepr(style="value")
    shown.reprtraceback.reprentries[-1].lines[:] = said.splitlines()
    if shown.reprcrash is not None:
        shown.reprcrash.message = said.partition("\n")[0]
    report.longrepr = shown


def raising_level(excinfo: pytest.ExceptionInfo[BaseException]) -> str | None:
    """The level whose pipeline the exception came from, None if it is a failure of the suite.

    A level cannot help weights that are not there or a device that has too little memory; what
    loading refuses by name is a mistake of its own kind as well.
    """
    if isinstance(excinfo.value, SourceError | OutOfMemoryError):
        return None
    for entry in excinfo.traceback:
        frame = entry.frame.raw
        if frame.f_globals.get("__name__") not in MODULES:
            continue
        if frame.f_code.co_name == "__call__":
            return str(frame.f_locals["self"].level.name)
        if frame.f_code.co_name == "build" and not isinstance(excinfo.value, SdoptError):
            return str(frame.f_locals["level"].name)
    return None
