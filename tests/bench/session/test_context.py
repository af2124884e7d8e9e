"""A run says what it is of."""

from __future__ import annotations

from pathlib import Path

import pytest
from sessions import with_settings

from sdopt.bench.review.known import limits_file, work_set
from sdopt.bench.session import RunContext, Session
from sdopt.bench.stored.baselines import work_path
from sdopt.bench.stored.history import load_run, save_run
from sdopt.errors import BrokenFileError
from sdopt.levels import LEVELS


def test_what_is_stored_says_what_it_is_of(session: Session) -> None:
    identity = session.run.identity(LEVELS["tuned"])
    assert identity["level_fields"]["channels_last"] is True
    assert (identity["source"], identity["steps"], identity["size_px"]) == ("micro", 2, 64)
    assert (identity["dtype"], identity["guidance_scale"]) == ("float32", 7.5)
    session.judged.append("benchmarks/a.py::test")
    block = session.block()
    assert (block["judged"], block["baseline_set"]) == (["benchmarks/a.py::test"], "micro")


def test_counts_of_the_miniature_are_those_of_every_dtype(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = with_settings(session, source="embedded")
    monkeypatch.setattr(RunContext, "dtype", "float16")
    assert embedded.run.baseline_set == "embedded-float16"
    root = session.store.root
    assert embedded.gate.work_file == str(work_path(root, "embedded"))
    assert embedded.gate.limits_file == str(root / "images" / "embedded-float16" / "limits.json")


def test_own_prompts_are_a_set_of_their_own(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunContext, "dtype", "float16")
    prompts = tmp_path / "mine.jsonl"
    prompts.write_text('{"name": "words", "prompt": "red star", "seed": 1}\n')
    assert with_settings(session, prompts=prompts).run.baseline_set == "micro--mine"
    embedded = with_settings(session, source="embedded", prompts=prompts)
    assert embedded.run.baseline_set == "embedded-float16--mine"
    assert embedded.run.made_on()["source"] == "embedded--mine"


def test_bfloat16_has_a_set_and_a_history_of_its_own(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = session.run.baseline_set
    monkeypatch.setenv("SDOPT_DTYPE", "bfloat16")
    run = with_settings(session, source=session.run.settings.source).run
    assert (run.dtype, run.identity(LEVELS["tuned"])["dtype"]) == ("bfloat16", "bfloat16")
    assert (usual, run.baseline_set) == ("micro", "micro-bfloat16")
    assert run.made_on()["dtype"] == "bfloat16"
    # Work is the same, images are not.
    assert work_set("micro", "micro-bfloat16--mine") == "micro--mine"
    assert limits_file(tmp_path, "micro", "micro-bfloat16--mine").parent.name == "micro-bfloat16"
    assert with_settings(session, source="embedded").run.baseline_set == "embedded-bfloat16"
    block = {"schema": 1, "hardware": run.hardware.key, "baseline_set": usual}
    path = save_run(tmp_path, "other", {"sdopt": block, "benchmarks": []})
    with pytest.raises(BrokenFileError, match="of another baseline set: 'micro', this run is"):
        load_run(path, run.hardware, run.baseline_set)
