"""Runs are numbered once, found by name, refused when broken, and judged by those of their era."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdopt.bench.stored.history import (
    StoredRun,
    find_run,
    history_folder,
    load_run,
    read_runs,
    save_run,
)
from sdopt.bench.stored.judging import judging, load_until, newest_of, read_judging_runs, series
from sdopt.bench.stored.soundness import statistics_of
from sdopt.errors import BrokenFileError
from sdopt.util.hardware import Hardware

H100 = Hardware(name="NVIDIA H100 80GB HBM3", memory_gib=80, detail="700 W")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def a_run(**block: Any) -> dict[str, Any]:
    """A run of one level as pytest-benchmark and the plugin write it; None drops a key."""
    whole = {
        "schema": 1,
        "hardware": H100.key,
        "baseline_set": "embedded",
        "judged": ["benchmarks/test_latency.py::test_latency[final]"],
        "environment": {"torch": "2.13.0"},
        **block,
    }
    info = {"level": "final", "unet_evaluations": 29}
    return {
        "sdopt": {name: value for name, value in whole.items() if value is not None},
        "machine_info": {},
        "benchmarks": [{"extra_info": info, "stats": statistics_of([0.3, 0.1, 0.2])}],
    }


def written(path: Path, content: bytes | str | dict[str, Any]) -> Path:
    """The path, holding bytes, text or JSON."""
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def runs(folder: Path, *names: str) -> Path:
    """The folder, with an empty run of each name."""
    for name in names:
        (folder / f"{name}.json").touch()
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failing(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


# Saving and finding


def test_a_history_is_filed_by_hardware_and_baseline_set(tmp_path: Path) -> None:
    folder = history_folder(tmp_path, H100, "embedded--mine")
    assert folder == tmp_path / "history" / H100.key / "embedded--mine"


def test_the_first_run_is_number_one(tmp_path: Path) -> None:
    path = save_run(tmp_path / "new" / "folder", "nightly", a_run())
    assert path == tmp_path / "new" / "folder" / "0001_nightly.json"
    assert json.loads(path.read_text()) == a_run()


@pytest.mark.parametrize(
    ("before", "number"),
    [
        (["0001_a"], "0002"),
        (["0001_a", "0007_b"], "0008"),
        (["9999_a"], "10000"),
        (["9999_a", "10000_b"], "10001"),
        (["123_a", "notes", "limits"], "0001"),
    ],
)
def test_a_run_gets_the_next_number(before: list[str], number: str, tmp_path: Path) -> None:
    path = save_run(runs(tmp_path, *before), "new", a_run())
    assert path.name == f"{number}_new.json"


@pytest.mark.parametrize("same_name", [True, False])
def test_runs_saved_at_once_get_distinct_numbers(same_name: bool, tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def save(worker: int) -> None:
        start.wait()
        for _ in range(4):
            save_run(tmp_path, "same" if same_name else f"worker{worker}", {})

    workers = [threading.Thread(target=save, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    numbers = [name.split("_")[0] for name in names_in(tmp_path)]
    assert numbers == [f"{number:04}" for number in range(1, 33)]


def test_an_error_while_saving_a_run_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", failing)
    with pytest.raises(OSError, match="No space left"):
        save_run(tmp_path, "new", a_run())
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_run_with_a_number_that_json_cannot_hold_is_not_saved(
    value: float, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_run(tmp_path, "new", {"ssim": value})
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, "10000_c"),
        ("", "10000_c"),
        ("1", "0001_a"),
        ("0001", "0001_a"),
        ("1000", "1000_b"),
        ("10000", "10000_c"),
        ("a", "0003_a"),
        ("b", "1000_b"),
        ("0001_a", "0001_a"),
        ("0001_a.json", "0001_a"),
        ("0003_", "0003_a"),
    ],
)
def test_a_run_is_found_by_number_or_name(wanted: str | None, found: str, tmp_path: Path) -> None:
    folder = runs(tmp_path, "0001_a", "0003_a", "1000_b", "10000_c", "notes")
    assert find_run(folder, wanted) == folder / f"{found}.json"


def test_a_run_is_found_by_its_path(tmp_path: Path) -> None:
    path = written(tmp_path / "elsewhere.json", "{}")
    assert find_run(tmp_path / "history", str(path)) == path


@pytest.mark.parametrize("wanted", ["2", "nightly", "0001_b", "\u00b2", "/nowhere/0001_a.json"])
def test_a_run_that_does_not_exist_is_named_with_the_choices(wanted: str, tmp_path: Path) -> None:
    with pytest.raises(BrokenFileError) as caught:
        find_run(runs(tmp_path, "0001_a", "0003_a"), wanted)
    message = str(caught.value)
    assert f"no run {wanted!r} for this hardware and source in {tmp_path}" in message
    assert message.endswith("choose from: 0001_a.json, 0003_a.json")


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_history_is_named(exists: bool, tmp_path: Path) -> None:
    folder = tmp_path if exists else tmp_path / "missing"
    with pytest.raises(BrokenFileError) as caught:
        find_run(folder, None)
    assert str(caught.value) == f"no stored run for this hardware and source in {folder}"


def test_a_saved_run_is_loaded_with_its_median_latency(tmp_path: Path) -> None:
    path = save_run(tmp_path, "new", a_run())
    run = load_run(path, H100, "embedded")
    assert run.metrics == {
        "final": {"level": "final", "unet_evaluations": 29, "latency_ms": pytest.approx(200.0)}
    }
    assert run.judged == ("benchmarks/test_latency.py::test_latency[final]",)
    assert (run.path, run.environment) == (path, {"torch": "2.13.0"})


WHOLE = json.dumps(a_run())
UNUSABLE: dict[str, tuple[bytes | str | dict[str, Any], list[str]]] = {
    "empty": ("", ["cannot be read", "left as it is"]),
    "truncated": (WHOLE[: len(WHOLE) // 2], ["cannot be read", "left as it is"]),
    "not text": (b"\xff\xfe\x00", ["cannot be read", "left as it is"]),
    "a list": ("[]", ["holds no JSON object", "left as it is"]),
    "of pytest-benchmark alone": ({"benchmarks": []}, ["not written by this suite", "missing"]),
    "with a block that is none": ({"sdopt": 1}, ["not written by this suite"]),
    "of no schema": (a_run(schema=None), ["another schema"]),
    "of another schema": (a_run(schema=2), ["another schema"]),
    "of other hardware": (a_run(hardware="tpu"), ["another hardware", "'tpu'", H100.key]),
    "of other prompts": (
        a_run(baseline_set="embedded--mine"),
        ["another baseline set", "'embedded--mine'", "'embedded'"],
    ),
    "without verdicts": (a_run(judged=None), ["run.json", "judged"]),
    "without versions": (a_run(environment=None), ["run.json", "environment"]),
    "with foreign versions": (a_run(environment="torch"), ["its environment is 'torch'"]),
    "without benchmarks": ({"sdopt": a_run()["sdopt"]}, ["$: 'benchmarks' is a required"]),
    "with null benchmarks": (
        {**a_run(), "benchmarks": None},
        ["$.benchmarks is null, expected array"],
    ),
    "with foreign benchmarks": ({**a_run(), "benchmarks": [{"name": "x"}]}, ["$.benchmarks[0]: "]),
    "with foreign metrics": (
        {**a_run(), "benchmarks": [{"extra_info": "abc", "stats": {"data": []}}]},
        ["is not of the schema run.json: $.benchmarks[0]."],
    ),
    "with foreign rounds": (
        {**a_run(), "benchmarks": [{"extra_info": {"level": "final"}, "stats": {"data": ["x"]}}]},
        ["[final] a round took 'x' s", "left as it is", "remove it"],
    ),
}


@pytest.mark.parametrize(("content", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_run_that_cannot_be_used_is_named_and_left_as_it_is(
    content: bytes | str | dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    path = written(tmp_path / "0001_a.json", content)
    before = path.read_bytes()
    with pytest.raises(BrokenFileError) as caught:
        load_run(path, H100, "embedded")
    message = str(caught.value)
    assert [word for word in [str(path), *words] if word not in message] == []
    assert path.read_bytes() == before


# What a run says of itself


@pytest.mark.parametrize(
    ("commit_info", "commit"),
    [
        ({"id": COMMIT, "dirty": False}, COMMIT[:12]),
        ({"id": "unversioned"}, None),
        ({"id": None}, None),
        ({"id": COMMIT[:39]}, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_run_knows_its_commit_if_there_was_one(
    commit_info: dict[str, Any] | None, commit: str | None, tmp_path: Path
) -> None:
    path = written(tmp_path / "0001_a.json", {**a_run(), "commit_info": commit_info})
    assert load_run(path, H100, "embedded").commit == commit


def test_a_run_of_before_commits_were_read_has_none(tmp_path: Path) -> None:
    path = written(tmp_path / "0001_a.json", a_run())
    assert load_run(path, H100, "embedded").commit is None


@pytest.mark.parametrize(("accepted", "is_accepted"), [(None, False), (False, False), (True, True)])
def test_a_run_says_whether_it_moved_the_baseline(
    accepted: bool | None, is_accepted: bool, tmp_path: Path
) -> None:
    path = written(tmp_path / "0001_a.json", a_run(accepted=accepted))
    assert load_run(path, H100, "embedded").accepted is is_accepted


# All runs up to one


def saved(folder: Path, *names: str) -> list[Path]:
    return [written(folder / f"{name}.json", a_run()) for name in names]


@pytest.mark.parametrize(
    ("last", "loaded"),
    [
        ("0001_a", ["0001_a"]),
        ("0002_b_partial", ["0001_a", "0002_b_partial"]),
        ("0010_c", ["0001_a", "0002_b_partial", "0010_c"]),
        ("10000_d", ["0001_a", "0002_b_partial", "0010_c", "10000_d"]),
    ],
)
def test_a_run_is_loaded_with_all_earlier_ones(
    last: str, loaded: list[str], tmp_path: Path
) -> None:
    saved(tmp_path, "10000_d", "0010_c", "0001_a", "0002_b_partial")
    written(tmp_path / "notes.json", "no run at all")
    found = load_until(tmp_path / f"{last}.json", H100, "embedded")
    assert [run.path.stem for run in found] == loaded


def test_a_run_outside_of_a_history_stands_alone(tmp_path: Path) -> None:
    saved(tmp_path, "0001_a")
    elsewhere = written(tmp_path / "elsewhere.json", a_run())
    assert [run.path for run in load_until(elsewhere, H100, "embedded")] == [elsewhere]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [("", "cannot be read"), (a_run(hardware="tpu"), "is of another hardware")],
)
def test_one_unusable_earlier_run_refuses_them_all(
    content: str | dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    *_, last = saved(tmp_path, "0001_a", "0003_c")
    broken = written(tmp_path / "0002_b.json", content)
    with pytest.raises(BrokenFileError, match=complaint) as caught:
        load_until(last, H100, "embedded")
    assert str(broken) in str(caught.value)


def test_a_later_run_does_not_count(tmp_path: Path) -> None:
    first, _ = saved(tmp_path, "0001_a", "0002_b")
    written(tmp_path / "0002_b.json", "")
    assert len(load_until(first, H100, "embedded")) == 1


def test_every_run_of_a_folder_is_read_oldest_first(tmp_path: Path) -> None:
    saved(tmp_path, "10000_c", "0002_b", "0001_a")
    assert [run.path.stem for run in read_runs(tmp_path)] == ["0001_a", "0002_b", "10000_c"]


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokenFileError, match="holds no stored run") as caught:
        read_runs(tmp_path)
    assert str(tmp_path) in str(caught.value)


# Eras


def stored(*rows: Mapping[str, Any] | None, accepted: int | None = None) -> list[StoredRun]:
    """Runs of the level `final`, oldest first; None for a run without it."""
    return [
        StoredRun(
            path=Path(f"{number:04}_a.json"),
            metrics={} if row is None else {"final": row},
            judged=(),
            environment={},
            accepted=number == accepted,
        )
        for number, row in enumerate(rows)
    ]


def never(level: str, row: Mapping[str, Any]) -> bool:
    return False


def of_20_steps(level: str, row: Mapping[str, Any]) -> bool:
    return row.get("steps") == 20


def ms(value: float | None, **more: Any) -> dict[str, Any]:
    return {"latency_ms": value, **more}


METRICS = ("latency_ms", "gpu_busy_ms")


def test_a_metric_is_judged_by_all_runs_oldest_first() -> None:
    runs = stored(ms(3.0), ms(1.0), ms(2.0))
    assert series(runs, METRICS, never) == {"final": {"latency_ms": [3.0, 1.0, 2.0]}}


def test_each_level_has_its_own_series() -> None:
    (run,) = stored(ms(1.0))
    both = StoredRun(
        path=run.path, metrics={"final": ms(2.0), "tuned": ms(9.0)}, judged=(), environment={}
    )
    assert series([run, both], METRICS, never) == {
        "final": {"latency_ms": [1.0, 2.0]},
        "tuned": {"latency_ms": [9.0]},
    }


def test_a_run_without_the_level_or_the_metric_is_left_out() -> None:
    runs = stored(ms(1.0, gpu_busy_ms=7.0), None, ms(None, gpu_busy_ms=8.0), ms(2.0, gpu_busy_ms=9))
    assert series(runs, METRICS, never) == {
        "final": {"latency_ms": [1.0, 2.0], "gpu_busy_ms": [7.0, 8.0, 9]}
    }


def test_a_level_that_the_newest_run_does_not_know_has_no_series() -> None:
    assert series(stored(ms(1.0), None), METRICS, never) == {}


def test_a_metric_that_the_newest_run_does_not_know_has_no_series() -> None:
    runs = stored(ms(1.0, gpu_busy_ms=7.0), ms(2.0))
    assert series(runs, METRICS, never) == {"final": {"latency_ms": [1.0, 2.0]}}


@pytest.mark.parametrize(
    ("accepted", "values"),
    [(None, [1.0, 2.0, 3.0]), (0, [1.0, 2.0, 3.0]), (1, [2.0, 3.0]), (2, [3.0])],
)
def test_an_accepted_run_starts_a_new_era(accepted: int | None, values: list[float]) -> None:
    runs = stored(ms(1.0), ms(2.0), ms(3.0), accepted=accepted)
    assert series(runs, METRICS, never) == {"final": {"latency_ms": values}}


def test_accepting_other_levels_moves_no_baseline_of_this_one() -> None:
    runs = stored(ms(1.0), None, ms(3.0), accepted=1)
    assert series(runs, METRICS, never) == {"final": {"latency_ms": [1.0, 3.0]}}


@pytest.mark.parametrize(
    ("steps", "values"),
    [
        ((30, 30, 30), [1.0, 2.0, 3.0]),
        ((20, 30, 30), [2.0, 3.0]),
        ((30, 20, 30), [3.0]),  # what was measured before the detour is not judged by
        ((30, 30, 20), []),
    ],
)
def test_a_series_reaches_back_to_where_the_level_was_redefined(
    steps: tuple[int, ...], values: list[float]
) -> None:
    runs = stored(*(ms(n + 1.0, steps=number) for n, number in enumerate(steps)))
    assert series(runs, METRICS, of_20_steps) == {"final": {"latency_ms": values}}


def test_a_value_that_means_nothing_stays_in_the_series_for_the_rule_to_refuse() -> None:
    found = series(stored(ms(math.nan), ms(0.0), ms(1.0)), METRICS, never)
    assert [repr(value) for value in found["final"]["latency_ms"]] == ["nan", "0.0", "1.0"]


def test_each_level_is_judged_by_runs_from_where_it_was_last_accepted_on(tmp_path: Path) -> None:
    def run(*levels: str, accepted: bool = False) -> dict[str, Any]:
        whole = a_run(accepted=accepted)
        one = whole["benchmarks"][0]
        named = [{**one, "extra_info": {**one["extra_info"], "level": level}} for level in levels]
        return {**whole, "benchmarks": named}

    written(tmp_path / "0001_old.json", run("final"))
    written(tmp_path / "0002_all.json", run("baseline", "final", accepted=True))
    written(tmp_path / "0003_more.json", run("final"))
    written(tmp_path / "0004_final.json", run("final", accepted=True))
    written(tmp_path / "0005_all.json", run("baseline", "final"))
    found = [(one.path.stem, sorted(one.metrics)) for one in read_judging_runs(tmp_path)]
    assert found == [
        ("0002_all", ["baseline"]),
        ("0004_final", ["final"]),
        ("0005_all", ["baseline", "final"]),
    ]


# Partial runs


def of_levels(number: int, name: str, *, accepted: bool = False, **ms_of: float) -> StoredRun:
    return StoredRun(
        path=Path(f"{number:04}_{name}.json"),
        metrics={level: ms(value) for level, value in ms_of.items()},
        judged=(name,),
        environment={},
        accepted=accepted,
    )


PARTIAL_RUNS = (
    of_levels(1, "a", final=1.0, turbo=10.0),
    of_levels(2, "b_partial", final=2.0),
    of_levels(3, "c", final=3.0, turbo=30.0),
    of_levels(4, "d_partial", accepted=True, final=4.0),
    of_levels(5, "e_partial", turbo=50.0),
)


def test_an_accepted_partial_run_judges_its_levels_at_once_and_hides_no_other() -> None:
    runs = judging(PARTIAL_RUNS)
    assert [run.path.name[:4] for run in runs] == ["0001", "0002", "0003", "0004"]
    assert series(runs, METRICS, never) == {
        "final": {"latency_ms": [4.0]},
        "turbo": {"latency_ms": [10.0, 30.0]},
    }
    newest = newest_of(runs)
    assert newest.path.name == "0003_c.json"
    assert newest.metrics == {"final": ms(4.0), "turbo": ms(30.0)}
    assert newest.judged == ("c", "d_partial")


def test_without_a_whole_run_each_level_is_judged_by_all_that_measured_it() -> None:
    runs = judging([run for run in PARTIAL_RUNS if run.is_partial])
    assert series(runs, METRICS, never) == {
        "final": {"latency_ms": [4.0]},
        "turbo": {"latency_ms": [50.0]},
    }


def test_what_an_accepted_run_did_not_measure_keeps_its_history() -> None:
    older, newer = stored(ms(1.0, gpu_busy_ms=7.0), ms(2.0), accepted=1)
    runs = [older, replace(newer, path=Path("0001_a_partial.json"))]
    assert series(runs, METRICS, never)["final"] == {"latency_ms": [2.0], "gpu_busy_ms": [7.0]}


def test_values_of_another_definition_are_not_taken_over() -> None:
    older, newer = stored(
        ms(1.0, gpu_busy_ms=7.0, level_fields={"steps": 20}), ms(2.0, level_fields={"steps": 30})
    )
    runs = [older, replace(newer, path=Path("0001_a_partial.json"), accepted=True)]
    assert "gpu_busy_ms" not in newest_of(runs).metrics["final"]
