"""Under --benchmark-compare, whatever cannot be judged is a failure with a name."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from project import Project

from sdopt.bench.judge.verdict import ExitCode


def refused(result: pytest.RunResult, complaint: str) -> None:
    """Both the benchmark and the closing check fail, saying why, and the header says it too."""
    assert result.ret == ExitCode.FAULT
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines([f"sdopt: comparing with nothing: {complaint}"])
    result.stdout.fnmatch_lines([f"*[[]baseline] latency_ms: fault: {complaint}"])
    result.stdout.fnmatch_lines(["*FAIL latency_ms"])


def test_no_stored_run(project: Project) -> None:
    result = project.latency("--benchmark-compare")
    refused(result, "no stored run for this hardware and source in *micro*")
    result.stdout.fnmatch_lines(
        [
            "*next: pytest benchmarks/ --sdopt-source=* --benchmark-autosave"
            "  # stores a run to compare with*"
        ]
    )


def test_a_history_of_other_hardware_only(stored: Project) -> None:
    folder = stored.histories()[0].parents[1]
    folder.rename(folder.with_name("nvidia-h100-80gb-hbm3-80gib-700w"))
    refused(stored.latency("--benchmark-compare"), "no stored run for this hardware and source *")


def of_other_hardware(data: dict[str, Any]) -> None:
    data["sdopt"]["hardware"] = "nvidia-h100-80gb-hbm3-80gib-700w"


def of_another_set(data: dict[str, Any]) -> None:
    data["sdopt"]["baseline_set"] = "embedded"


def of_another_schema(data: dict[str, Any]) -> None:
    data["sdopt"]["schema"] = 99


def without_our_block(data: dict[str, Any]) -> None:
    del data["sdopt"]


def without_benchmarks(data: dict[str, Any]) -> None:
    del data["benchmarks"]


def without_rounds(data: dict[str, Any]) -> None:
    del data["benchmarks"][0]["stats"]["data"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (of_other_hardware, "* is of another hardware: 'nvidia-h100-80gb-hbm3-80gib-700w', *"),
        (of_another_set, "* is of another baseline set: 'embedded', this run is 'micro'; *"),
        (of_another_schema, "* was not written by this suite: *another schema*"),
        (without_our_block, "* was not written by this suite: *missing*"),
        (without_benchmarks, "* is not of the schema run.json: *benchmarks*"),
        (without_rounds, "* is not of the schema run.json: *data*"),
    ],
)
def test_a_run_that_is_not_to_be_compared_with(
    change: Callable[[dict[str, Any]], None], complaint: str, stored: Project
) -> None:
    path = stored.edit_history(change)
    before = path.read_bytes()
    refused(stored.latency("--benchmark-compare"), complaint)
    assert path.read_bytes() == before


def halved(path: Path) -> bytes:
    return path.read_bytes()[: path.stat().st_size // 2]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (halved, "*.json cannot be read: *; it was left as it is*"),
        (lambda path: b"", "*.json cannot be read: *; it was left as it is*"),
        (lambda path: b"\xff\xfe", "*.json cannot be read: *; it was left as it is*"),
        (lambda path: b"[]", "*.json holds no JSON object; it was left as it is*"),
    ],
    ids=["truncated", "empty", "binary", "list"],
)
def test_a_broken_history(
    content: Callable[[Path], bytes], complaint: str, stored: Project
) -> None:
    path = stored.histories()[0]
    path.write_bytes(content(path))
    before = path.read_bytes()
    refused(stored.latency("--benchmark-compare", "--benchmark-autosave"), complaint)
    assert path.read_bytes() == before
    assert stored.histories() == [path]


@pytest.mark.parametrize("seconds", [math.nan, 0.0])
def test_a_stored_number_that_means_nothing(seconds: Any, stored: Project) -> None:
    def change(data: dict[str, Any]) -> None:
        data["benchmarks"][0]["stats"]["data"] = [seconds]

    path = stored.edit_history(change)
    stored.fake_latency(1.0)
    result = stored.latency("--benchmark-compare")
    refused(result, f"{path} is not sound: [[]baseline] a round took {seconds!r} s; *")
    result.stdout.fnmatch_lines([f"*next: git checkout -- {path}  # or remove it*"])


def of_other_rounds(data: dict[str, Any]) -> None:
    data["benchmarks"][0]["stats"]["mean"] *= 2


def of_another_machine(data: dict[str, Any]) -> None:
    data["machine_info"]["cpu"]["brand_raw"] = "Another CPU"


def without_settings(data: dict[str, Any]) -> None:
    data["benchmarks"][0]["extra_info"]["level_fields"] = None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (of_other_rounds, "[[]baseline] its mean is *, its rounds make that *"),
        (of_another_machine, "its machine_info says 'Another CPU', its hardware key is *"),
        (without_settings, "[[]baseline] level_fields is None, *"),
    ],
)
def test_a_stored_value_that_contradicts_another_or_itself(
    change: Callable[[dict[str, Any]], None], complaint: str, stored: Project
) -> None:
    path = stored.edit_history(change)
    stored.fake_latency(1.0)
    refused(stored.latency("--benchmark-compare"), f"{path} is not sound: {complaint}")


def test_a_level_that_the_stored_run_does_not_know(stored: Project) -> None:
    def change(data: dict[str, Any]) -> None:
        data["benchmarks"] = []

    stored.edit_history(change)
    result = stored.latency("--benchmark-compare")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            "*[[]baseline] latency_ms: fault: there is no stored value*",
            "*next: pytest benchmarks/ --sdopt-source=* --benchmark-autosave"
            "  # stores a run to compare with*",
        ]
    )


def test_counts_of_work_that_nobody_stored(stored: Project) -> None:
    stored.work_file.unlink()
    result = stored.run(tests="benchmarks/test_work.py")
    assert result.ret == ExitCode.FAULT
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            "*[[]baseline] unet_evaluations: fault: there is no stored value*",
            f"*file: {stored.work_file}*",
            '*next: pytest benchmarks/ --sdopt-source=* -k "[[]baseline]" --sdopt-accept'
            "  # stores this run's counts*",
            "baseline*FAIL unet_evaluations, tflop",
        ]
    )
    assert not stored.work_file.exists()


@pytest.mark.parametrize("metric", ["unet_evaluations", "tflop"])
def test_a_count_of_work_that_is_missing(metric: str, stored: Project) -> None:
    stored.edit_work(**{metric: None})
    result = stored.run(tests="benchmarks/test_work.py")
    assert result.ret == ExitCode.FAULT
    result.stdout.fnmatch_lines([f"*[[]baseline] {metric}: fault: there is no stored value*"])


def broken_counts(project: Project) -> Path:
    return project.work_file


def broken_limits(project: Project) -> Path:
    return project.baselines / "images" / "micro" / "limits.json"


@pytest.mark.parametrize("broken", [broken_counts, broken_limits])
def test_counts_or_limits_that_cannot_be_read(
    broken: Callable[[Project], Path], stored: Project
) -> None:
    path = broken(stored)
    path.write_text("{")
    result = stored.run(tests="benchmarks/test_work.py")
    assert result.ret == ExitCode.FAULT
    result.stdout.fnmatch_lines([f"*{path} cannot be read: *; it was left as it is*"])
    assert path.read_text() == "{"


def test_one_broken_run_among_those_to_judge_by(stored: Project) -> None:
    (newest,) = stored.histories()
    broken = newest.with_name("0000_older.json")
    broken.write_text("{")
    refused(stored.latency("--benchmark-compare"), f"{broken} cannot be read: *")


def test_benchmarks_that_are_disabled(stored: Project) -> None:
    result = stored.latency("--benchmark-compare", "--benchmark-disable")
    refused(result, "benchmarks are disabled (--benchmark-disable); drop it")


def test_benchmarks_that_are_disabled_without_comparing_pass(stored: Project) -> None:
    stored.latency("--benchmark-disable").assert_outcomes(passed=1)


def test_benchmarks_that_are_skipped(stored: Project) -> None:
    result = stored.latency("--benchmark-compare", "--benchmark-skip")
    result.assert_outcomes(failed=1, skipped=1)
    assert result.ret == ExitCode.FAULT
    result.stdout.fnmatch_lines(["*benchmarks are skipped (--benchmark-skip); drop it*"])


def without(name: str) -> tuple[str, str, str]:
    return name, "def test_", "def helper_"


def renamed(name: str) -> tuple[str, str, str]:
    return name, "def test_", "def test_other_"


def skipped(name: str) -> tuple[str, str, str]:
    return name, "    record = ", '    __import__("pytest").skip("not today")\n    record = '


def marked(name: str) -> tuple[str, str, str]:
    return name, "def test_", '@__import__("pytest").mark.skip(reason="not today")\ndef test_'


def unjudged(name: str) -> tuple[str, str, str]:
    return name, "    verdict = gate.latency(level, record, first_call)\n", "    return\n"


@pytest.mark.parametrize("edit", [without, renamed, skipped, marked, unjudged])
def test_a_benchmark_that_is_gone_from_this_run(
    edit: Callable[[str], tuple[str, str, str]], stored: Project
) -> None:
    stored.edit_benchmark(*edit("test_latency.py"))
    result = stored.latency("--benchmark-compare", "-rf")
    assert result.ret == ExitCode.FAULT
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(
        [
            f"1 tests of the stored run {stored.histories()[0]} reached no verdict in this run: "
            "benchmarks/test_latency.py::test_latency[[]baseline]",
            "  next: put them back, or store a run without them: *",
            "FAILED *every stored benchmark is judged*",
        ]
    )


def test_a_benchmark_file_that_is_gone(stored: Project) -> None:
    (stored.path / "benchmarks" / "test_work.py").unlink()
    result = stored.run("--benchmark-compare")
    assert result.ret == ExitCode.FAULT
    result.assert_outcomes(failed=1, passed=5, skipped=3)
    result.stdout.fnmatch_lines(["2 tests of the stored run * reached no verdict in this run: *"])


def test_what_was_collected_and_deselected_was_left_out_on_request(stored: Project) -> None:
    result = stored.run("--benchmark-compare", "--deselect=benchmarks/test_work.py")
    result.assert_outcomes(passed=6, skipped=3)


def test_what_was_never_collected_is_missing(stored: Project) -> None:
    result = stored.run("--benchmark-compare", "--ignore=benchmarks/test_work.py")
    result.assert_outcomes(failed=1, passed=5, skipped=3)


def test_an_exact_selection_judges_only_that(stored: Project) -> None:
    source = ("--sdopt-source", str(stored.source))
    result = stored.pytester.runpytest(
        "benchmarks/test_work.py::test_work[baseline]", "--benchmark-compare", *source
    )
    result.assert_outcomes(passed=2)


def test_a_level_removed_from_the_ladder_fails(stored: Project) -> None:
    def change(data: dict[str, Any]) -> None:
        data["sdopt"]["judged"].append("benchmarks/test_latency.py::test_latency[gone]")

    stored.edit_history(change)
    result = stored.latency("--benchmark-compare")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*reached no verdict*test_latency[[]gone]*"])


def test_a_selection_of_nothing_does_not_pass(stored: Project) -> None:
    result = stored.run("--benchmark-compare", level="basline")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unknown level 'basline' (did you mean 'baseline'[?])*"])
    result = stored.run("--benchmark-compare", "-k", "nothing")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_an_empty_folder_does_not_pass(stored: Project) -> None:
    for path in (stored.path / "benchmarks").glob("test_*.py"):
        path.unlink()
    result = stored.run("--benchmark-compare")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["7 tests of the stored run * reached no verdict in this run: *"])


def test_the_step_after_a_broken_file_names_it(stored: Project) -> None:
    path = stored.histories()[-1]
    path.write_text(path.read_text()[:100])
    result = stored.run("--benchmark-compare")
    assert result.ret == 2
    result.stdout.fnmatch_lines([f"*next: git checkout -- {path}  # or remove it*"])
