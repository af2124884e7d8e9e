"""What accepting a run would change is told, judged, and stored whole or not at all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from killing import killed_everywhere
from submitted import (
    COUNTS,
    LEVEL_NAMES,
    PROMPTS,
    a_run,
    a_store,
    history,
    pictures,
    state,
    submit,
)

from sdopt.bench.judge.verdict import Outcome
from sdopt.bench.review.acceptance import NEW, Review, accept, line, review
from sdopt.bench.review.changelog import with_line
from sdopt.bench.review.submission import read_submission
from sdopt.bench.session.leftovers import tidy
from sdopt.bench.stored.accepting import digest
from sdopt.bench.stored.baselines import load_work, save_work, work_path
from sdopt.bench.stored.history import read_run, run_paths
from sdopt.bench.stored.judging import read_judging_runs
from sdopt.errors import BrokenFileError, SdoptError, UnknownNameError
from sdopt.util.files import write_whole

SAME = dict.fromkeys(LEVEL_NAMES, 100.0)
SLOWER = {"baseline": 100.0, "final": 200.0}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "CHANGELOG.md").write_text("# Changelog\n\n## 0.1.0\n\n- One.\n")
    return a_store(tmp_path / "clone" / "baselines")


@pytest.fixture
def log(root: Path) -> Path:
    return root.parent / "CHANGELOG.md"


def reviewed(root: Path, tmp_path: Path, run: Any, **kept: Any) -> Review:
    return review(root, read_submission(submit(tmp_path, run, **kept)))


def outcomes(found: Review, metric: str) -> dict[str, Outcome]:
    return {one.level: one.outcome for one in found.verdicts if one.metric == metric}


def test_the_same_needs_no_reason_and_replaces_no_file(root: Path, tmp_path: Path) -> None:
    found = reviewed(root, tmp_path, a_run(SAME))
    assert outcomes(found, "latency_ms") == dict.fromkeys(LEVEL_NAMES, Outcome.PASS)
    assert outcomes(found, "ssim_drift") == dict.fromkeys(LEVEL_NAMES, Outcome.PASS)
    assert outcomes(found, "unet_evaluations") == dict.fromkeys(LEVEL_NAMES, Outcome.PASS)
    assert (found.changes, dict(found.counts), found.needs_reason) == ((), {}, False)
    before = state(root)
    path = accept(found, "", None)
    assert path.name == "0007_run.json"
    assert {name: content for name, content in state(root).items() if name in before} == before


def test_a_regression_needs_its_reason_and_stands_in_the_changelog(
    root: Path, tmp_path: Path, log: Path
) -> None:
    found = reviewed(root, tmp_path, a_run(SLOWER))
    assert outcomes(found, "latency_ms")["final"] is Outcome.REGRESSION
    before = state(root.parent)
    for reason in ("", " \n "):
        with pytest.raises(SdoptError, match=r"final latency_ms 100 -> 200.*--reason"):
            accept(found, reason, log)
    assert state(root.parent) == before
    path = accept(found, "a better\nscheduler", log)
    run, data = read_run(path)
    assert (run.accepted, run.reason) == (True, "a better scheduler")
    assert "kept" not in data["sdopt"]
    assert log.read_text().splitlines()[:-1] == ["# Changelog", "", "## 0.1.0", "", "- One."]
    last = log.read_text().splitlines()[-1]
    assert "final latency_ms 100 -> 200 (+100.0 %, regression)" in last
    assert last.endswith("Reason: a better scheduler")
    judging = read_judging_runs(history(root))
    assert [one.path for one in judging if "final" in one.metrics] == [path]


def test_another_image_another_count_and_other_latents_are_told_and_stored(
    root: Path, tmp_path: Path
) -> None:
    more = {**COUNTS, "unet_evaluations": 30}
    given = a_run({"final": 100.0}, unet_evaluations=30)
    found = reviewed(root, tmp_path, given, seed=9, levels=("final",), counts=more)
    assert {change.kept.prompt for change in found.replaced} == {*PROMPTS}
    assert {change.what for change in found.changes if not change.kept.is_image} == {
        "64 of 64 values"
    }
    assert outcomes(found, "ssim_drift") == {"final": Outcome.REGRESSION}
    assert outcomes(found, "latent_drift") == {"final": Outcome.REGRESSION}
    assert outcomes(found, "unet_evaluations") == {"final": Outcome.REGRESSION}
    assert found.needs_reason
    accept(found, "meant", None)
    for path, content in pictures(root, "final", seed=9).items():
        assert path.read_bytes() == content
    for path, content in pictures(root, "baseline").items():
        assert path.read_bytes() == content
    counts = load_work(work_path(root, "embedded"))
    assert counts == {"baseline": COUNTS, "final": more}
    assert "2 images of final" in line(found, "meant")
    assert "counts of final" in line(found, "meant")


def test_counts_that_differ_by_the_order_of_their_sums_are_the_same(
    root: Path, tmp_path: Path
) -> None:
    path = work_path(root, "embedded")
    exact = {**COUNTS, "tflop": 31.827112763392, "tflop_by_module": {"unet.fused": 5.97502984192}}
    summed = {"tflop": 31.827112763391998, "tflop_by_module": {"unet.fused": 5.9750298419200005}}
    save_work(path, "final", {**exact, **summed})
    before = path.read_bytes()
    given = a_run({"final": 100.0}, tflop=exact["tflop"])
    found = reviewed(root, tmp_path, given, levels=("final",), counts=exact)
    assert (dict(found.counts), found.needs_reason) == ({}, False)
    accept(found, "", None)
    assert path.read_bytes() == before


def test_the_first_run_is_new_and_no_fault(tmp_path: Path) -> None:
    root = tmp_path / "empty"
    found = reviewed(root, tmp_path, a_run(SAME))
    numbers = [one for one in found.verdicts if one.metric in ("latency_ms", "unet_evaluations")]
    assert {one.outcome for one in numbers} == {Outcome.RECORDED}
    assert {one.reason for one in numbers if one.metric == "unet_evaluations"} == {NEW}
    assert {change.is_new for change in found.changes} == {True}
    assert not found.needs_reason
    accept(found, "", None)
    assert len(run_paths(history(root))) == 1
    assert load_work(work_path(root, "embedded")) == dict.fromkeys(LEVEL_NAMES, COUNTS)


def test_a_stored_run_moves_only_its_history(root: Path) -> None:
    """A run that was saved by itself passed: its images are those that are stored."""
    newest = run_paths(history(root))[-1]
    found = review(root, read_submission(newest))
    assert (found.given.has_kept, found.changes) == (False, ())
    path = accept(found, "a new GPU driver", None)
    assert path.name == "0007_nightly.json"
    assert newest.exists()


def test_accepted_twice_is_refused(root: Path, tmp_path: Path) -> None:
    path = accept(reviewed(root, tmp_path, a_run(SAME)), "", None)
    with pytest.raises(SdoptError, match=f"was accepted before: it is {re.escape(str(path))}"):
        reviewed(root, tmp_path, a_run(SAME))


@pytest.mark.parametrize("what", ["a run", "an image", "counts"])
def test_what_changed_since_it_was_looked_at_is_not_written_over(
    what: str, root: Path, tmp_path: Path, log: Path
) -> None:
    more = {**COUNTS, "unet_evaluations": 30}
    found = reviewed(root, tmp_path, a_run(SAME), seed=9, counts=more)
    file = {
        "a run": history(root) / "0007_other.json",
        "an image": root / "images/embedded/final/red-star.png",
        "counts": work_path(root, "embedded"),
    }[what]
    file.write_bytes(b"somebody else's")
    before = state(root.parent)
    with pytest.raises(SdoptError, match=f"{file.name} has changed since"):
        accept(found, "meant", log)
    assert state(root.parent) == before


def test_levels_of_a_project_of_its_own_are_judged_too(root: Path, tmp_path: Path) -> None:
    """Their code is not at hand: they are what the run says of them."""
    (tmp_path / "a").mkdir()
    first = submit(tmp_path / "a", a_run({"theirs": 100.0}), levels=("theirs",))
    accept(review(root, read_submission(first)), "", None)
    found = reviewed(root, tmp_path, a_run({"theirs": 250.0}), seed=9, levels=("theirs",))
    assert outcomes(found, "latency_ms") == {"theirs": Outcome.REGRESSION}
    assert outcomes(found, "ssim_drift") == {"theirs": Outcome.REGRESSION}
    assert accept(found, "meant", None).name == "0008_run.json"
    for path, content in pictures(root, "theirs", seed=9).items():
        assert path.read_bytes() == content
    other = a_run({"theirs": 90.0})
    other["benchmarks"][0]["extra_info"]["level_fields"]["call"] = '{"eta": 1}'
    redefined = reviewed(root, tmp_path, other, seed=9, levels=("theirs",))
    assert outcomes(redefined, "latency_ms") == {"theirs": Outcome.FAULT}
    told = [one.reason for one in redefined.verdicts if one.metric == "latency_ms"]
    assert "the stored run measured another level: call {} -> " in told[0]


# What is submitted is checked


def test_a_damaged_stored_image_is_never_written_over(root: Path, tmp_path: Path) -> None:
    path = root / "images/embedded/final/red-star.png"
    path.write_bytes(b"broken")
    with pytest.raises(BrokenFileError, match=r"red-star\.png is no PNG file.*remove it, or put"):
        reviewed(root, tmp_path, a_run(SAME), seed=9)
    assert path.read_bytes() == b"broken"


def edited(path: Path, **block: Any) -> Path:
    data = json.loads(path.read_text())
    data["sdopt"] |= block
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"fault": "loop:0.05"}, "carried the fault 'loop:0.05' on purpose"),
        ({"hardware": "../../etc"}, r"\$\.sdopt\.hardware is \"\.\./\.\./etc\", expected text"),
        ({"baseline_set": ".."}, r"\$\.sdopt\.baseline_set is '\.\.', expected a folder's name"),
        ({"source": "a/b"}, r"\$\.sdopt\.source is 'a/b', expected a folder's name"),
        ({"kept": {"../../outside": "0" * 64}}, "is not inside"),
        ({"kept": {"images/embedded/final/red-star.png": "0" * 64}}, "is not what the run wrote"),
        ({"kept": {"images/embedded/final/none.png": "0" * 64}}, "is missing, and the run lists"),
        ({"kept": {"a": "x"}}, r"\$\.sdopt\.kept\.a is \"x\", expected text like"),
        ({"reason": 3}, r"\$\.sdopt\.reason is 3, expected string"),
    ],
)
def test_what_a_run_says_of_itself_is_not_believed(
    block: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = edited(submit(tmp_path, a_run(SAME)), **block)
    with pytest.raises(BrokenFileError, match=says):
        read_submission(path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("images/other/final/red-star.png", "is no place of an image"),
        ("images/embedded/nolevel/red-star.png", "is no place of an image"),
        ("images/embedded/final/red-star.txt", "is no place of an image"),
        ("images/embedded/final/Red Star.png", "is no place of an image"),
        ("conftest.py", "is no place of an image"),
        ("images/embedded/final/x.png", "is no PNG file"),
        ("latents/embedded/final/x.safetensors", "cannot be read"),
    ],
)
def test_a_file_lies_where_such_a_thing_lies_and_is_one(
    name: str, says: str, tmp_path: Path
) -> None:
    path = submit(tmp_path, a_run(SAME))
    write_whole(tmp_path / "run.kept" / name, b"evil")
    edited(path, kept={name: digest(b"evil")})
    with pytest.raises(BrokenFileError, match=says):
        read_submission(path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = submit(tmp_path, a_run(SAME))
    image = tmp_path / "run.kept" / "images/embedded/final/red-star.png"
    image.rename(tmp_path / "secret.png")
    image.symlink_to(tmp_path / "secret.png")
    with pytest.raises(BrokenFileError, match="is not inside"):
        read_submission(path)


def test_a_level_of_another_definition_or_name_is_refused(tmp_path: Path) -> None:
    run = a_run(SAME)
    run["benchmarks"][1]["extra_info"]["level_fields"]["steps"] = 19
    with pytest.raises(BrokenFileError, match=r"another level 'final'.*steps 19 -> 20"):
        read_submission(submit(tmp_path, run))
    run["benchmarks"][1]["extra_info"]["level"] = "finale"
    with pytest.raises(UnknownNameError, match="unknown level 'finale'"):
        read_submission(submit(tmp_path, run))


# Killed and at once

ACT = """
from pathlib import Path
from sdopt.bench.review.acceptance import accept, review
from sdopt.bench.review.submission import read_submission
import sdopt.bench.measure.quality, skimage.metrics, PIL.PngImagePlugin, safetensors.numpy
def act(clone):
    found = review(clone / "baselines", read_submission(Path({run!r})))
    accept(found, "meant", clone / "CHANGELOG.md")
"""


def test_killed_before_any_change_it_makes_all_is_old_or_new(
    root: Path, tmp_path: Path, log: Path
) -> None:
    """History, images, latents, counts and CHANGELOG: one state, and none of them lost."""
    more = {**COUNTS, "unet_evaluations": 30}
    run = submit(tmp_path, a_run(SLOWER), seed=9, counts=more)
    old = state(root.parent)
    clones = killed_everywhere(root.parent, tmp_path / "killed", ACT.format(run=str(run)))
    new = state(clones[-1])
    assert len(new) == len(old) + 1
    assert sum(new[name] != old[name] for name in old) == 8 + 1 + 1
    seen = []
    for clone in clones:
        tidy(clone / "baselines")
        now = state(clone)
        assert now in (old, new)
        seen.append(now == new)
        if now == old:  # the same again is whole, and one line of the CHANGELOG
            found = review(clone / "baselines", read_submission(run))
            accept(found, "meant", clone / "CHANGELOG.md")
            assert state(clone) == new
    assert seen == sorted(seen)
    assert seen.count(False) > 20
    assert seen.count(True) > 10


ACCEPTING = """
import sys, time
from pathlib import Path
from sdopt.bench.review import acceptance
from sdopt.bench.review.acceptance import accept, review
from sdopt.bench.review.submission import read_submission
from sdopt.errors import SdoptError
root, run = Path(sys.argv[1]), read_submission(Path(sys.argv[2]))
stored = acceptance.store_held
def slowly(*arguments):
    time.sleep(1)  # the other one comes meanwhile
    stored(*arguments)
acceptance.store_held = slowly
while True:
    try:
        accept(review(root, run), "meant", root.parent / "CHANGELOG.md")
        break
    except SdoptError as error:
        assert "has changed since" in str(error), error
"""


def test_two_who_accept_at_once_lose_nothing(root: Path, tmp_path: Path, log: Path) -> None:
    """One of them has to look again, at what the other stored."""
    children = []
    for number, level in enumerate(LEVEL_NAMES):
        folder = tmp_path / level
        folder.mkdir()
        more = {**COUNTS, "unet_evaluations": 31 + number}
        run = submit(folder, a_run({level: 300.0}), seed=7, levels=(level,), counts=more)
        command = (sys.executable, "-c", ACCEPTING, str(root), str(run))
        children.append(subprocess.Popen(command))
    assert [child.wait(timeout=120) for child in children] == [0, 0]
    assert len(run_paths(history(root))) == 8
    counts = load_work(work_path(root, "embedded"))
    assert {level: row["unet_evaluations"] for level, row in counts.items()} == {
        "baseline": 31,
        "final": 32,
    }
    assert log.read_text().count("Moved baseline") == 2
    for level in LEVEL_NAMES:
        for path, content in pictures(root, level, seed=7).items():
            assert path.read_bytes() == content


# The line


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "# Changelog\n\n## 2\n\n- a\n\n## 1\n\n- b\n",
            "# Changelog\n\n## 2\n\n- a\n- new\n\n## 1\n\n- b\n",
        ),
        ("# Changelog\n\n## 2\n", "# Changelog\n\n## 2\n\n- new\n"),
        ("# Changelog\n\n## 2\n\n- a\n  more\n", "# Changelog\n\n## 2\n\n- a\n  more\n- new\n"),
        (None, "# Changelog\n\n- new\n"),
    ],
)
def test_the_line_comes_last_in_the_newest_section(
    before: str | None, after: str, tmp_path: Path
) -> None:
    path = tmp_path / "CHANGELOG.md"
    if before is not None:
        path.write_text(before)
    assert with_line(path, "- new").decode() == after


def test_a_changelog_that_is_no_text_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "CHANGELOG.md"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BrokenFileError, match="no UTF-8 text"):
        with_line(path, "- new")
