"""What a run ends with on the terminal: the ladder table, then what was written."""

from __future__ import annotations

from typing import Any

import pytest

from sdopt.bench.plugin import ab
from sdopt.bench.plugin.keys import BENCH, COMPARISON, SESSION
from sdopt.bench.report.terminal import absence_note, blind_note, ladder_table, power_note
from sdopt.bench.session import Session


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The ladder table, then what was written; the self-test and an A/B run have their own."""
    session = config.stash[SESSION]
    if BENCH in config.stash:
        from sdopt.bench.plugin import selftest

        terminalreporter.section("self-test")
        terminalreporter.write_line("\n".join(selftest.summary(config.stash[BENCH])))
    elif not session.is_judging:
        return  # no test of the ladder ran
    elif COMPARISON in config.stash:
        comparison, hardware = config.stash[COMPARISON], session.run.hardware
        terminalreporter.section(f"{comparison.base} against the working tree: {hardware}")
        terminalreporter.write_line("\n".join(ab.summary(comparison, session.verdicts)))
    else:
        _show_ladder(terminalreporter, session)
        _show_what_was_stored(terminalreporter, session)
        note = config._benchmarksession.storage.note  # type: ignore[attr-defined]
        if note:
            terminalreporter.write_line(note)


def _show_ladder(terminalreporter: Any, session: Session) -> None:
    run = session.run
    table = ladder_table(list(run.levels), session.measured, session.verdicts)
    if not table:
        return
    terminalreporter.section(f"ladder: {run.source.name} on {run.hardware}")
    terminalreporter.write_line("\n".join(table))
    terminalreporter.write_line("A cost in parentheses is the samplers' difference, not a loss.")
    store = f"{run.settings.command} --benchmark-autosave"
    notes = (
        *power_note(session.measured),
        *blind_note(session.verdicts, store),
        *absence_note(),
    )
    for line in notes:
        terminalreporter.write_line(line)


def _show_what_was_stored(terminalreporter: Any, session: Session) -> None:
    store = session.store
    if store.accepted:
        terminalreporter.write_line(
            f"stored {len(store.accepted)} baseline images in {store.images_folder}"
        )
