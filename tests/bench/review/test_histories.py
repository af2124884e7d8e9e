"""Histories are shown by level and metric, and pruned of what no verdict needs."""

from __future__ import annotations

import math
import random
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from killing import killed_everywhere
from submitted import KEY, SET, a_run, a_store, history

from sdopt.bench.judge.statistics import (
    FAMILY_ERROR,
    PRIOR_WEIGHT,
    judge_by_history,
    student_t,
)
from sdopt.bench.metrics import HISTORY_RULES
from sdopt.bench.metrics.metric import Prior
from sdopt.bench.review.known import is_redefined, judging
from sdopt.bench.review.pruning import Pruning, prune, pruning
from sdopt.bench.review.stores import Place, chosen, image_sets, places
from sdopt.bench.review.timeline import timelines
from sdopt.bench.stored.history import FIRST_RUNS, KEPT_RUNS, NEWEST_RUNS, run_paths, save_run
from sdopt.bench.stored.judging import series
from sdopt.errors import SdoptError, UnknownNameError
from sdopt.levels import LEVELS


def place_of(root: Path) -> Place:
    (place,) = places(root)
    return place


def save(root: Path, ms: dict[str, float], *, partial: bool = False, **block: Any) -> Path:
    return save_run(history(root), "run", a_run(ms, block), partial=partial)


# Shown


def test_a_line_has_its_runs_and_what_they_say(tmp_path: Path) -> None:
    save(tmp_path, {"final": 200.0})
    save(tmp_path, {"final": 100.0}, accepted=True, reason="faster")
    save(tmp_path, {"final": 104.0, "baseline": 900.0})
    ((place, lines),) = timelines([place_of(tmp_path)], ["final"])
    assert (place.hardware, place.baseline_set) == (KEY, SET)
    (line,) = lines
    assert (line.metric, line.unit, line.median) == ("latency_ms", "ms", 102.0)
    assert line.spread is not None
    assert line.limit is not None
    assert 0.01 < line.spread < 0.1
    assert line.limit > 102
    assert [point.value for point in line.points] == [200.0, 100.0, 104.0]
    assert [point.judges for point in line.points] == [False, True, True]
    assert [point.accepted for point in line.points] == [False, True, False]
    assert [point.reason for point in line.points] == [None, "faster", None]
    assert {point.commit for point in line.points} == {"0123456789ab"}
    assert asdict(line)["points"][0]["run"] == "0001_run.json"


def test_the_limit_is_the_gate_s(tmp_path: Path) -> None:
    """The levels of a run share one error rate."""
    from sdopt.bench.judge.gate import Gate
    from sdopt.bench.review.known import known_of

    root = a_store(tmp_path)
    gate = Gate()
    known_of(judging(history(root), KEY, SET), KEY, 3.0, gate)
    prior = HISTORY_RULES["latency_ms"].priors["cpu"]
    values = gate.series["final"]["latency_ms"]
    wanted = judge_by_history(100.0, values, prior, gate.comparisons).limit
    ((_, (line,)),) = timelines([place_of(root)], ["final"], ["latency_ms"])
    assert line.limit == pytest.approx(wanted)


def test_a_level_or_metric_that_there_is_not_is_named(tmp_path: Path) -> None:
    place = place_of(a_store(tmp_path))
    with pytest.raises(UnknownNameError, match="unknown level 'turbo'"):
        timelines([place], ["turbo"])
    with pytest.raises(UnknownNameError, match="unknown metric 'latncy_ms'"):
        timelines([place], metrics=["latncy_ms"])
    with pytest.raises(UnknownNameError, match="unknown hardware key 'h100'"):
        chosen(tmp_path, "h100")
    with pytest.raises(SdoptError, match="there is no folder"):
        places(tmp_path / "none")


def test_images_are_counted_by_source(tmp_path: Path) -> None:
    (found,) = image_sets(a_store(tmp_path))
    assert (found.baseline_set, found.levels, found.images, found.latents) == (SET, 2, 4, 4)
    assert (found.has_counts, found.has_limits) == (True, False)
    assert found.bytes > 4 * 32 * 32


# Pruned


def judged_by(root: Path) -> dict[str, dict[str, list[float]]]:
    runs = judging(history(root), KEY, SET)
    return series(runs, HISTORY_RULES, lambda name, row: is_redefined(LEVELS[name], row, 3.0))


def pruned(root: Path, **options: Any) -> Pruning:
    found = pruning(place_of(root), **options)
    prune(found, unsaved=True)
    return found


def test_runs_before_an_accepted_one_go_and_no_verdict_changes(tmp_path: Path) -> None:
    for ms in (100.0, 101.0, 102.0):
        save(tmp_path, {"final": ms, "baseline": 900.0})
    save(tmp_path, {"final": 80.0}, partial=True, accepted=True)
    save(tmp_path, {"final": 81.0, "baseline": 901.0}, accepted=True)
    save(tmp_path, {"final": 82.0, "baseline": 902.0})
    before = judged_by(tmp_path)
    found = pruned(tmp_path)
    assert [path.name[:4] for path in found.removed] == ["0001", "0002", "0003", "0004"]
    assert judged_by(tmp_path) == before


def test_what_still_judges_another_level_stays_and_its_old_rows_do_not_come_back(
    tmp_path: Path,
) -> None:
    """`final` was another level in run 2: without that run, run 1 would judge it again."""
    save(tmp_path, {"final": 50.0, "baseline": 900.0})
    other = a_run({"final": 70.0})
    other["benchmarks"][0]["extra_info"]["level_fields"]["steps"] = 19
    save_run(history(tmp_path), "run", other, partial=True)
    save(tmp_path, {"final": 50.0, "baseline": 900.0})
    before = judged_by(tmp_path)
    assert before["final"]["latency_ms"] == [50.0]
    assert pruned(tmp_path).removed == ()
    assert judged_by(tmp_path) == before


def test_any_history_judges_after_pruning_as_before(tmp_path: Path) -> None:
    """Redefined, accepted and partial in any order; nothing of the kept ends is lost or added."""
    chance = random.Random(3)
    for case in range(25):
        root = tmp_path / str(case)
        for _ in range(chance.randint(3, 14)):
            names = [name for name in ("baseline", "tuned", "final") if chance.random() < 0.7]
            run = a_run({name: 100 + chance.random() for name in names or ["final"]})
            for entry in run["benchmarks"]:
                if chance.random() < 0.2:
                    entry["extra_info"]["level_fields"]["steps"] = 7
            run["sdopt"]["accepted"] = chance.random() < 0.2
            save_run(history(root), "run", run, partial=len(names) < 3)
        before, (place,) = judged_by(root), places(root)
        found = pruning(place)
        while found.removed:
            prune(found, unsaved=True)
            assert judged_by(root) == before
            found = pruning(place)


def test_the_middle_of_a_long_history_goes(tmp_path: Path) -> None:
    for number in range(60):
        save(tmp_path, {"final": 100.0 + number})
    found = pruned(tmp_path)
    kept = [int(path.name[:4]) for path in run_paths(history(tmp_path))]
    assert kept == [*range(1, FIRST_RUNS + 1), *range(61 - NEWEST_RUNS, 61)]
    assert len(kept) == KEPT_RUNS
    assert len(found.removed) == 60 - KEPT_RUNS
    assert pruned(tmp_path).removed == ()
    with pytest.raises(SdoptError, match="--keep is 4"):
        pruning(place_of(tmp_path), newest=4)


def test_endless_runs_would_narrow_what_may_be_chance_little() -> None:
    """What the docs say: by an eighth, for the fifteen levels and three metrics of a GPU."""

    def width(runs: int) -> float:
        freedom = PRIOR_WEIGHT + 0.6 * (runs - 1)
        return student_t(0.8 * FAMILY_ERROR / 45, freedom) * math.sqrt(1 + math.pi / 2 / runs)

    assert 0.1 < 1 - width(10**7) / width(KEPT_RUNS) < 0.13 < 1 - width(10**7) / width(20)


def test_a_slow_drift_is_still_seen_after_pruning(tmp_path: Path) -> None:
    """Its beginning is kept: against the newest runs alone it would look level."""
    prior = Prior(spread=0.01, least_effect=0.01)
    values = [100.0 * 1.002**number for number in range(100)]
    kept = [*values[:FIRST_RUNS], *values[-NEWEST_RUNS:]]
    assert judge_by_history(values[-1], kept, prior).drift is not None
    flat = [*[100.0] * 5, *[107.0] * 45]
    shortened = [*flat[:FIRST_RUNS], *flat[-NEWEST_RUNS:]]
    assert judge_by_history(107.5, shortened, prior).drift is not None
    assert judge_by_history(107.5, flat[-NEWEST_RUNS:], prior).drift is None


def test_what_git_does_not_hold_is_not_removed(tmp_path: Path) -> None:
    save(tmp_path, {"final": 100.0})
    save(tmp_path, {"final": 80.0}, accepted=True)
    first, _ = run_paths(history(tmp_path))
    found = pruning(place_of(tmp_path))
    assert found.unsaved == (first,)
    with pytest.raises(SdoptError, match=r"not in git.*--unsaved; nothing was removed"):
        prune(found)
    assert first.exists()
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "runs"]):
        git = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run((*git, *arguments), check=True)
    found = pruning(place_of(tmp_path))
    assert found.unsaved == ()
    first.write_text(first.read_text() + "\n")
    assert pruning(place_of(tmp_path)).unsaved == (first,)
    assert prune(found) == [first]
    assert not first.exists()


def test_a_run_that_was_stored_meanwhile_is_not_overlooked(tmp_path: Path) -> None:
    save(tmp_path, {"final": 100.0})
    save(tmp_path, {"final": 80.0}, accepted=True)
    found = pruning(place_of(tmp_path))
    save(tmp_path, {"final": 81.0})
    with pytest.raises(SdoptError, match="has changed meanwhile"):
        prune(found, unsaved=True)
    assert len(run_paths(history(tmp_path))) == 3


ACT = """
from sdopt.bench.review.pruning import prune, pruning
from sdopt.bench.review.stores import places
def act(root):
    prune(pruning(places(root)[0]), unsaved=True)
"""


def test_killed_at_any_moment_it_judges_as_before(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for number in range(6):
        save(root, {"final": 100.0 + number, "baseline": 900.0}, accepted=number == 4)
    before = judged_by(root)
    folders = killed_everywhere(root, tmp_path / "killed", ACT)
    counts = []
    for folder in folders:
        assert judged_by(folder) == before
        counts.append(len(run_paths(history(folder))))
        pruned(folder)
        assert judged_by(folder) == before
        assert len(run_paths(history(folder))) == 2
    assert (counts[0], counts[-1]) == (6, 2)
    assert {6, 5, 4, 3, 2} == {*counts}
