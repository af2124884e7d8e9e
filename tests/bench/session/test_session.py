"""A run is judged by its history, if it asked for one and there is one that is whole."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sessions import with_settings

from sdopt.bench.session import Session, context
from sdopt.bench.session.header import header
from sdopt.bench.stored.compared import Compared, NotCompared, Refused
from sdopt.bench.stored.history import StoredRun, save_run
from sdopt.bench.stored.soundness import statistics_of
from sdopt.engine import cards
from sdopt.engine.cards import H100
from sdopt.levels import LEVELS

STEPS = 2


def compared(session: Session, judged: tuple[str, ...] = (), **environment: str) -> Session:
    """The session as if it had found a stored run."""
    run = StoredRun(path=Path("0001_a.json"), metrics={}, judged=judged, environment=environment)
    session.store.history = Compared(runs=(run,))
    return session


def lines(session: Session) -> list[str]:
    return header(session.run, session.store)


def test_only_versions_that_differ_are_printed(session: Session) -> None:
    here = session.run.environment
    assert not [line for line in lines(compared(session, **here)) if "changed" in line]
    changed = compared(session, **{**here, "torch": "2.0.1"})
    assert f"sdopt: changed since then: torch 2.0.1 -> {here['torch']}" in lines(changed)


def test_a_history_of_a_time_before_tiles_were_noted_is_compared_and_says_so(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = session.run.environment
    assert "tiles" not in here  # on a CPU, which has none
    monkeypatch.setattr(cards, "card_of", lambda device: H100)
    noted = context._tiles(torch.device("cuda"))
    assert re.fullmatch(r"sm_90\.json [0-9a-f]{8}", noted["tiles"])
    monkeypatch.setitem(here, "tiles", noted["tiles"])
    before = {name: value for name, value in here.items() if name != "tiles"}
    changed = f"sdopt: changed since then: tiles unknown -> {noted['tiles']}"
    assert changed in lines(compared(session, **before))
    other = {**before, "tiles": "own sm_90-132.json 00000000"}
    changed = f"changed since then: tiles {other['tiles']} -> {noted['tiles']}"
    assert any(changed in line for line in lines(compared(session, **other)))


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("", ["b/a.py::t[x]", "b/a.py::t[y]"]),
        (".", ["b/a.py::t[x]", "b/a.py::t[y]"]),
        ("b", ["b/a.py::t[x]", "b/a.py::t[y]"]),
        ("b/a.py", ["b/a.py::t[x]", "b/a.py::t[y]"]),
        ("b/a.py::t", ["b/a.py::t[x]", "b/a.py::t[y]"]),
        ("b/a.py::t[y]", ["b/a.py::t[y]"]),
        ("b/a", []),
        ("a.py", []),
        ("c", []),
    ],
)
def test_unjudged_tests_are_those_within_what_was_asked_for(
    scope: str, expected: list[str], session: Session
) -> None:
    run = compared(session, judged=("b/a.py::t[x]", "b/a.py::t[y]"))
    assert run.unjudged((), [scope]) == expected
    assert run.unjudged(expected, [scope]) == []
    run.judged.extend(expected)
    assert run.unjudged((), [scope]) == []


def test_nothing_is_unjudged_without_a_stored_run(session: Session) -> None:
    assert session.unjudged((), ["."]) == []


def test_an_unfit_run_says_why_before_it_looks_for_a_stored_one(session: Session) -> None:
    unfit = with_settings(session, compare="", unfit="because")
    assert unfit.store.history == Refused(reason="because")
    assert unfit.gate.refusal == "because"
    assert unfit.gate.refusal_hint == f"{unfit.gate.command} --benchmark-compare" + (
        "  # without that option"
    )


def measured(session: Session, latency_ms: float, **more: Any) -> dict[str, Any]:
    """A run of `baseline` and `tuned` as the plugin stores it; `more` goes into its block."""
    entries = [
        {
            "extra_info": {**session.run.identity(LEVELS[name]), "host_syncs": 0},
            "stats": statistics_of([latency_ms / 1e3]),
        }
        for name in ("baseline", "tuned")
    ]
    return {
        "sdopt": {**session.block(), **more},
        "benchmarks": entries,
        "machine_info": {},
        "commit_info": {"id": "0123456789abcdef0123456789abcdef01234567"},
    }


def test_without_a_comparison_there_is_no_history(session: Session) -> None:
    save_run(session.store.history_folder, "a", measured(session, 100.0))
    assert session.store.history == NotCompared()
    assert (session.gate.comparing, session.gate.stored, session.gate.series) == (False, {}, {})
    assert not [line for line in lines(session) if "comparing" in line]


def test_a_comparison_without_a_stored_run_is_refused(session: Session) -> None:
    comparing = with_settings(session, compare="")
    refused = comparing.store.history
    assert isinstance(refused, Refused)
    assert comparing.gate.refusal == refused.reason
    assert comparing.gate.refusal_hint is None
    assert f"sdopt: comparing with nothing: {refused.reason}" in lines(comparing)
    assert "--benchmark-autosave stores a first run" in lines(comparing)[-1]


def test_the_gate_judges_by_all_stored_runs(session: Session) -> None:
    for latency_ms in (100.0, 110.0):
        newest = save_run(session.store.history_folder, "a", measured(session, latency_ms))
    comparing = with_settings(session, compare="")
    gate = comparing.gate
    assert gate.series["tuned"]["latency_ms"] == [pytest.approx(100.0), pytest.approx(110.0)]
    assert gate.stored["tuned"]["latency_ms"] == pytest.approx(110.0)
    assert (gate.history, gate.commit, gate.redefined) == (str(newest), "0123456789ab", {})
    assert f"sdopt: comparing with {newest} and 1 earlier" in lines(comparing)


def test_the_gate_judges_by_the_runs_since_the_baseline_was_accepted(session: Session) -> None:
    for latency_ms, accepted in ((100.0, False), (50.0, True), (51.0, False)):
        save_run(
            session.store.history_folder, "a", measured(session, latency_ms, accepted=accepted)
        )
    gate = with_settings(session, compare="").gate
    assert gate.series["tuned"]["latency_ms"] == [pytest.approx(50.0), pytest.approx(51.0)]


def test_a_run_named_by_number_is_judged_by_the_runs_up_to_it(session: Session) -> None:
    for latency_ms in (100.0, 110.0, 120.0):
        save_run(session.store.history_folder, "a", measured(session, latency_ms))
    gate = with_settings(session, compare="2").gate
    assert gate.series["tuned"]["latency_ms"] == [pytest.approx(100.0), pytest.approx(110.0)]


def test_runs_of_another_definition_of_a_level_are_not_judged_by(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(session.store.history_folder, "a", measured(session, 100.0))
    monkeypatch.setitem(LEVELS, "tuned", replace(LEVELS["tuned"], steps=STEPS + 1))
    stale = with_settings(session, compare="").gate
    assert stale.redefined == {"tuned": f"steps {STEPS} -> {STEPS + 1}"}
    save_run(session.store.history_folder, "b", measured(session, 200.0))
    gate = with_settings(session, compare="").gate
    assert gate.redefined == {}
    assert gate.series["tuned"]["latency_ms"] == [pytest.approx(200.0)]
    assert gate.series["baseline"]["latency_ms"] == [pytest.approx(100.0), pytest.approx(200.0)]


def test_a_stored_level_that_left_the_ladder_is_not_redefined(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(session.store.history_folder, "a", measured(session, 100.0))
    left = {name: level for name, level in LEVELS.items() if name != "tuned"}
    monkeypatch.setattr("sdopt.bench.session.context.LEVELS", left)
    assert with_settings(session, compare="").gate.redefined == {}


def test_one_broken_earlier_run_refuses_the_comparison(session: Session) -> None:
    broken = save_run(session.store.history_folder, "a", measured(session, 100.0))
    save_run(session.store.history_folder, "a", measured(session, 100.0))
    broken.write_text("")
    gate = with_settings(session, compare="").gate
    assert gate.refusal is not None
    assert str(broken) in gate.refusal
    assert gate.refusal_hint is not None
    assert gate.refusal_hint.startswith(f"git checkout -- {broken}  #")
