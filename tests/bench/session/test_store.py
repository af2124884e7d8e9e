"""Reading a baseline never writes; accepting one stores it only if it is worth it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sessions import made_up, stored_files, with_settings

from sdopt.bench.measure import Work
from sdopt.bench.metrics.work import ACCEPTED_COUNTS, WORK_DETAILS
from sdopt.bench.session import Session
from sdopt.bench.stored.baselines import load_work, work_path
from sdopt.errors import BrokenFileError, SdoptError
from sdopt.levels import BASELINE


def test_a_missing_image_is_named(session: Session) -> None:
    stored, unusable = session.store.images(BASELINE, made_up(session).images)
    assert stored == {}
    assert list(unusable) == ["astronaut", "castle"]
    assert "no baseline image" in str(unusable["castle"])


def test_reading_writes_nothing_even_in_a_run_that_accepts(session: Session) -> None:
    accepting, made = with_settings(session, accept=True), made_up(session)
    accepting.store.images(BASELINE, made.images)
    accepting.store.latents(BASELINE, made.latents)
    accepting.store.latents(BASELINE, made.latents, double=True)
    assert accepting.gate.comparing is False
    assert (accepting.store.accepted, stored_files(session)) == ([], [])


def test_what_is_accepted_is_read_back_and_stored_once(session: Session) -> None:
    accepting, made = with_settings(session, accept=True), made_up(session)
    accepting.store.accept(BASELINE, made)
    (folder,) = session.store.root.glob("images/micro/baseline")
    assert accepting.store.accepted == [folder / "astronaut.png", folder / "castle.png"]
    accepting.store.accepted[0].unlink()
    accepting.store.accept(BASELINE, made)
    stored, unusable = session.store.images(BASELINE, made.images)
    assert (list(stored), list(unusable)) == (["castle"], ["astronaut"])
    kept, missing = session.store.latents(BASELINE, made.latents)
    assert (list(kept), missing) == (["astronaut", "castle"], {})


def test_nothing_is_accepted_without_being_asked_for(session: Session) -> None:
    session.store.accept(BASELINE, made_up(session))
    session.store.accept_work(BASELINE, WORK)
    assert (session.store.accepted, stored_files(session)) == ([], [])


@pytest.mark.parametrize(("value", "fault"), [(np.nan, "NaN"), (0.0, "a black image")])
def test_a_worthless_image_is_never_stored(value: float, fault: str, session: Session) -> None:
    accepting, made = with_settings(session, accept=True), made_up(session)
    images: dict[str, Any] = {**made.images, "castle": made.images["castle"] * value}
    with pytest.raises(SdoptError, match=rf"\[baseline\] nothing was stored: .*castle.*{fault}"):
        accepting.store.accept(BASELINE, made_up(session, images=images))
    assert (accepting.store.accepted, stored_files(session)) == ([], [])


WORK = Work(
    unet_evaluations=3,
    tflop=0.5,
    recompiles=0,
    graph_breaks=0,
    calls={"unet": 3},
    tflop_by_module={"unet.mid_block": 0.25},
    float8_products=None,
)


def test_counts_are_stored_when_they_are_accepted(session: Session) -> None:
    accepting = with_settings(session, accept=True)
    assert accepting.gate.work(BASELINE, WORK).passed is False
    accepting.store.accept_work(BASELINE, WORK)
    path = work_path(session.store.root, "micro")
    counts = {name: getattr(WORK, name) for name in (*ACCEPTED_COUNTS, *WORK_DETAILS)}
    expected = {name: count for name, count in counts.items() if name != "float8_products"}
    assert load_work(path) == {"baseline": expected}
    assert accepting.gate.work(BASELINE, WORK).passed
    later = with_settings(session).gate
    assert (later.work_file, later.work_stored) == (str(path), {"baseline": expected})
    assert later.work(BASELINE, WORK).passed


def test_broken_counts_are_named_before_anything_is_judged(session: Session) -> None:
    path = work_path(session.store.root, "micro")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(BrokenFileError, match="cannot be read"):
        session.gate  # noqa: B018
    assert (session.is_judging, session.verdicts, session.measured) == (False, (), {})
