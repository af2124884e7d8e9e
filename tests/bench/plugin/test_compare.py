"""--benchmark-compare judges a run by a stored one, and names what got worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from project import Project, scale_latency, set_latency

from sdopt.bench.judge.verdict import ExitCode
from sdopt.bench.report.page.facts import gather
from sdopt.bench.review.stores import places
from sdopt.bench.review.timeline import timelines
from sdopt.bench.stored.history import read_run
from sdopt.cli.app import main

NEXT = [
    '*next: pytest benchmarks/ --sdopt-source=* -k "[[]baseline]" --sdopt-ab=BASE'
    "  # settles it in pairs of runs*",
    "*or:   pytest benchmarks/ --sdopt-source=* --benchmark-autosave --sdopt-accept"
    "  # if the new value is meant*",
]


def test_without_it_times_are_recorded_only(stored: Project) -> None:
    stored.edit_history(scale_latency(0.01))
    result = stored.run()
    result.assert_outcomes(passed=7, skipped=3)
    result.stdout.fnmatch_lines(["baseline*pass (latency recorded)"])
    result.stdout.no_fnmatch_line("*saved this run*")


def test_a_run_that_is_no_worse_passes(stored: Project) -> None:
    before = stored.histories()[0].read_bytes()
    result = stored.run("--benchmark-compare")
    result.assert_outcomes(passed=8, skipped=3)
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"sdopt: comparing with {stored.histories()[0]}"])
    assert [path.read_bytes() for path in stored.histories()] == [before]


def test_a_slower_run_fails_by_level_and_metric_alone(stored: Project) -> None:
    path = stored.edit_history(scale_latency(0.01))
    result = stored.run("--benchmark-compare", "-rf")
    result.assert_outcomes(failed=1, passed=7, skipped=3)
    result.stdout.fnmatch_lines(
        [
            "*[[]baseline] latency_ms: regression: +* % against the stored run, * % may be chance, "
            "sees * % in 4 of 5 runs*",
            "*measured * ms, stored * ms, limit * ms*",
            f"*file: {path}*",
            *NEXT,
            "baseline*FAIL latency_ms",
            "FAILED benchmarks/test_latency.py::test_latency[[]baseline]*",
        ]
    )
    assert result.ret == ExitCode.REGRESSION


def change_info(**values: Any) -> Any:
    def change(data: dict[str, Any]) -> None:
        for entry in data["benchmarks"]:
            entry["extra_info"].update(values)

    return change


@pytest.mark.parametrize("options", [(), ("--benchmark-compare",)])
@pytest.mark.parametrize(("metric", "value"), [("unet_evaluations", 5), ("tflop", 1e-4)])
def test_other_counts_of_work_fail_by_name_in_every_run(
    metric: str, value: float, options: tuple[str, ...], stored: Project
) -> None:
    path = stored.edit_work(**{metric: value})
    before = path.read_bytes()
    result = stored.run(*options, tests="benchmarks/test_work.py")
    assert result.ret == ExitCode.REGRESSION
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(
        [
            f"*[[]baseline] {metric}: regression: has to equal what is stored*",
            f"*file: {path}*",
            '*next: pytest benchmarks/ * -k "[[]baseline]" --sdopt-accept  # if the new work is *',
            f"baseline*FAIL {metric}",
        ]
    )
    assert path.read_bytes() == before


def test_a_count_that_differs_is_traced_to_its_part_and_module(stored: Project) -> None:
    counts = stored.stored_counts()["baseline"]
    stored.edit_work(
        tflop=counts["tflop"] * 2,
        calls={**counts["calls"], "unet": 4},
        tflop_by_module={**counts["tflop_by_module"], "unet.conv_in": 1.0},
    )
    result = stored.run(tests="benchmarks/test_work.py")
    result.stdout.fnmatch_lines(
        ["*tflop: regression: *: unet called 4 -> 3 times, unet.conv_in 1 -> * TFLOP*"]
    )


def test_a_history_of_other_counts_does_not_matter(stored: Project) -> None:
    stored.edit_history(change_info(unet_evaluations=5, tflop=1e-4))
    stored.run("--benchmark-compare", tests="benchmarks/test_work.py").assert_outcomes(passed=3)


def test_a_run_is_judged_by_all_stored_runs(stored: Project) -> None:
    stored.edit_history(set_latency(100.0))
    for milliseconds in (104.0, 96.0, 102.0):
        stored.fake_latency(milliseconds)
        add_run(stored, milliseconds)
    result = stored.latency("--benchmark-compare")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([f"sdopt: comparing with {stored.histories()[-1]} and 3 earlier"])
    (verdict,) = stored.verdicts()["verdicts"]
    assert (verdict["runs"], verdict["stored"]) == (4, pytest.approx(101.0, rel=1e-3))
    stored.fake_latency(1000.0)
    result = stored.latency("--benchmark-compare")
    result.stdout.fnmatch_lines(["*latency_ms: regression: * against the median of 4 stored runs*"])


def add_run(project: Project, milliseconds: float, *, accepted: bool = False) -> None:
    """Store another run, as if it had measured that."""
    runs = project.histories()
    data = json.loads(runs[-1].read_text())
    set_latency(milliseconds)(data)
    data["sdopt"]["accepted"] = accepted
    (runs[0].parent / f"{len(runs) + 1:04}_run.json").write_text(json.dumps(data))


@pytest.mark.parametrize(("accepted", "outcome"), [(True, "pass"), (False, "regression")])
def test_an_accepted_run_starts_a_history_anew(
    accepted: bool, outcome: str, stored: Project
) -> None:
    stored.edit_history(set_latency(100.0))
    add_run(stored, 101.0)
    add_run(stored, 99.0)
    add_run(stored, 400.0, accepted=accepted)
    stored.fake_latency(410.0)
    stored.latency("--benchmark-compare")
    (verdict,) = stored.verdicts()["verdicts"]
    assert verdict["outcome"] == outcome


def test_a_slow_drift_fails_by_name(stored: Project) -> None:
    stored.edit_history(set_latency(100.0))
    for n in range(1, 30):
        add_run(stored, 100.0 * 1.01**n * (1 + 0.05 * (-1) ** n))
    stored.fake_latency(130.0)
    result = stored.latency("--benchmark-compare")
    result.stdout.fnmatch_lines(["*latency_ms: regression: a slow drift: the newest runs are * %*"])
    assert result.ret == ExitCode.REGRESSION


def test_the_newest_run_is_compared_with_unless_one_is_named(stored: Project) -> None:
    stored.latency("--benchmark-save=second")
    first, second = stored.histories()
    assert [first.name[:4], second.name] == ["0001", "0002_second_partial.json"]

    def compared_with(option: str) -> str:
        result = stored.latency(option, "--collect-only")
        (line,) = (line for line in result.outlines if line.startswith("sdopt: comparing with "))
        return line.removeprefix("sdopt: comparing with ")

    assert compared_with("--benchmark-compare") == f"{second} and 1 earlier"
    for name in ("1", "0001", str(first)):
        assert compared_with(f"--benchmark-compare={name}") == str(first)
    assert compared_with("--benchmark-compare=7").startswith("nothing: no run '7' for this ")


def test_another_version_is_printed_and_compared(stored: Project) -> None:
    def older(data: dict[str, Any]) -> None:
        data["sdopt"]["environment"]["torch"] = "2.0.1"

    stored.edit_history(older)
    result = stored.latency("--benchmark-compare")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["sdopt: changed since then: torch 2.0.1 -> 2.*"])


def test_a_stored_run_says_what_was_measured_on_what(stored: Project) -> None:
    data = json.loads(stored.histories()[0].read_text())
    block = data["sdopt"]
    assert block["judged"] == [
        f"benchmarks/test_{test}[baseline]"
        for test in (
            "latency.py::test_latency",
            "quality.py::test_drift",
            "quality.py::test_latents",
            "quality.py::test_latents_float64",
            "quality.py::test_repeat",
            "work.py::test_effect",
            "work.py::test_work",
        )
    ]
    assert (block["source"], block["baseline_set"]) == ("micro", "micro")
    assert set(block["environment"]) >= {"python", "torch", "diffusers", "threads"}
    (entry,) = data["benchmarks"]
    assert len(entry["stats"]["data"]) == 2
    info = entry["extra_info"]
    assert (info["level"], info["steps"], info["dtype"]) == ("baseline", 3, "float32")
    assert (info["unet_evaluations"], info["compile_cache"]) == (6, "eager")
    assert info["level_fields"]["scheduler"] == "euler-ancestral"
    assert set(info["stage_ms"]) == {"text", "denoise", "decode"}
    assert block["accepted"] is True


def test_a_stored_run_is_accepted_only_if_it_moved_the_baseline(stored: Project) -> None:
    stored.latency("--benchmark-autosave")
    assert json.loads(stored.histories()[-1].read_text())["sdopt"]["accepted"] is False


def test_a_run_with_failed_tests_is_not_saved(stored: Project) -> None:
    next(stored.images.glob("castle.png")).unlink()
    result = stored.run("--benchmark-autosave")
    result.assert_outcomes(failed=1, passed=6, skipped=3)
    assert result.ret == ExitCode.FAULT
    result.stdout.fnmatch_lines(["this run was not saved: 1 of its tests failed"])
    assert len(stored.histories()) == 1


def test_a_saved_run_says_where(stored: Project) -> None:
    result = stored.latency("--benchmark-save=mine")
    result.stdout.fnmatch_lines([f"saved this run as {stored.histories()[-1]}"])
    assert stored.histories()[-1].name == "0002_mine_partial.json"


def test_a_partial_run_does_not_take_the_place_of_a_whole_one(stored: Project) -> None:
    (partial,) = stored.histories()
    whole = partial.rename(partial.with_name("0001_whole.json"))
    result = stored.latency("--benchmark-autosave")
    result.stdout.fnmatch_lines(
        ["it left benchmarks out: * newest whole run, * --benchmark-compare=0002"]
    )
    result = stored.latency("--benchmark-compare")
    result.stdout.fnmatch_lines([f"sdopt: comparing with {whole}"])


def test_a_partial_run_that_was_accepted_judges_at_once(
    stored: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """By one rule for the gate, `sdopt history` and the report."""
    (old,) = stored.histories()
    whole = old.rename(old.with_name("0001_whole.json"))
    stored.edit_history(set_latency(40_000.0))
    stored.latency("--benchmark-json=run.json")
    accept = ("baseline", "accept", "run.json", "--reason", "faster", "--yes")
    assert main([*accept, "--baselines", str(stored.baselines)]) == 0
    said = capsys.readouterr().out
    assert "1 earlier run no longer judges its levels; it left benchmarks out: other" in said
    accepted = stored.histories()[-1]
    assert accepted.name == "0002_run_partial.json"
    result = stored.latency("--benchmark-compare", "--benchmark-json=again.json")
    result.stdout.fnmatch_lines([f"sdopt: comparing with {whole}, and baseline with {accepted}"])
    (ms,) = (run.metrics["baseline"]["latency_ms"] for run in (read_run(accepted)[0],))
    ((_, (line,)),) = timelines(places(stored.baselines), metrics=["latency_ms"])
    facts = gather(stored.path / "again.json", stored.baselines)
    told = {one.metric: one for one in facts.verdicts}["latency_ms"]
    (seen,) = (row for row in stored.verdicts()["verdicts"] if row["metric"] == "latency_ms")
    for stored_ms, limit, file in (
        (seen["stored"], seen["limit"], seen["file"]),
        (line.median, line.limit, str(stored.baselines / f"{line.points[-1].run}")),
        (told.stored, told.limit, told.file),
    ):
        assert stored_ms == pytest.approx(ms)
        assert limit == pytest.approx(line.limit)
        assert Path(file).name == accepted.name
    assert [point.judges for point in line.points] == [False, True]


@pytest.mark.parametrize("value", [{"steps": 30}, {"cfg_cutoff": 0.4}])
def test_a_stored_run_of_another_definition_of_the_level_fails(
    value: dict[str, Any], stored: Project
) -> None:
    def change(data: dict[str, Any]) -> None:
        data["benchmarks"][0]["extra_info"]["level_fields"].update(value)

    stored.edit_history(change)
    result = stored.latency("--benchmark-compare")
    result.assert_outcomes(failed=1, passed=1)
    ((name, before),) = value.items()
    result.stdout.fnmatch_lines(
        [f"*latency_ms: fault: the stored run measured another level: {name} {before} -> *"]
    )


def test_a_stored_run_of_another_guidance_scale_fails(stored: Project) -> None:
    stored.edit_history(change_info(guidance_scale=3.0))
    result = stored.latency("--benchmark-compare")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*measured another level: guidance_scale 3.0 -> 7.5*"])
