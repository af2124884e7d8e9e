"""Options of pytest-benchmark that would weaken the gate are refused."""

from __future__ import annotations

import shutil

import pytest
from project import Project

from sdopt.bench.judge.verdict import ExitCode


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        (
            "--benchmark-compare-fail=mean:5%",
            "ERROR: --benchmark-compare-fail cannot see memory or images *drop it*",
        ),
        (
            "--benchmark-storage=elsewhere",
            "ERROR: --benchmark-storage elsewhere: *choose their folder with --sdopt-baselines DIR",
        ),
    ],
)
def test_an_option_that_weakens_the_gate_is_a_usage_error(
    option: str, complaint: str, project: Project
) -> None:
    result = project.run(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([complaint])


def test_running_without_pytest_benchmark_is_a_usage_error(project: Project) -> None:
    result = project.run("-p", "no:benchmark")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: sdopt needs pytest-benchmark; drop -p no:benchmark"])


def test_only_our_folder_is_written(stored: Project) -> None:
    stored.latency("--benchmark-autosave").assert_outcomes(passed=1)
    assert len(stored.histories()) == 2
    assert not (stored.path / ".benchmarks").exists()


def test_pytest_benchmarks_own_json_still_works(project: Project) -> None:
    project.latency("--benchmark-json=run.json").assert_outcomes(passed=1)
    assert '"baseline_set": "micro"' in (project.path / "run.json").read_text()


def test_help_states_each_option_and_its_default(project: Project) -> None:
    result = project.pytester.runpytest("--help", f"--sdopt-source={project.source}")
    lines = result.stdout.str()
    _, _, group = lines.partition("optimization levels of Stable Diffusion 1.5:")
    options = group.partition("\n\n")[0].split("--sdopt-")[1:]
    assert [option.split()[0].partition("=")[0] for option in options] == [
        *("source", "prompts", "baselines", "accept", "ab", "selftest", "compile-cache")
    ]
    assert [option for option in options if "(default: " not in " ".join(option.split())] == []


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--benchmark-compare=", "*compare with nothing; name a run, as in --benchmark-compare=*"),
        ("--benchmark-compare= ", "*compare with nothing; name a run, as in --benchmark-compare=*"),
        ("--benchmark-json=", "*no file can be written there*"),
        ("--benchmark-json=nowhere/run.json", "*no file can be written there*"),
        ("--benchmark-save=", "*--benchmark-save: Can't be empty.*"),
        *(
            (f"--sdopt-{name}=", f"*--sdopt-{name}: the value is empty (an unset variable?)*")
            for name in ("source", "prompts", "baselines", "ab", "compile-cache")
        ),
    ],
)
def test_an_empty_value_is_a_usage_error(option: str, complaint: str, stored: Project) -> None:
    """As a CI job gives one whose variable nobody set."""
    result = stored.latency(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([complaint])


@pytest.mark.parametrize(
    "judging", ["--benchmark-compare", "--benchmark-autosave", "--benchmark-json=run.json"]
)
@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--benchmark-timer=time.process_time", "*stored times are those of time.perf_counter*"),
        ("--benchmark-disable-gc", "*stored times are those with the garbage collector on*"),
        ("--setup-only", "*run no benchmark*"),
        ("--setup-plan", "*run no benchmark*"),
    ],
)
def test_what_is_judged_is_measured_as_what_is_stored(
    judging: str, option: str, complaint: str, stored: Project
) -> None:
    result = stored.latency(judging, option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([complaint])
    assert len(stored.histories()) == 1


def test_another_name_of_the_same_timer_is_no_other_timer(stored: Project) -> None:
    stored.fake_latency(1.0)
    result = stored.latency("--benchmark-compare", "--benchmark-timer=timeit.default_timer")
    assert result.ret == 0


STORING = ("--benchmark-autosave", "--benchmark-save=name", "--benchmark-json=run.json")


@pytest.mark.parametrize("storing", STORING)
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--benchmark-disable",), "benchmarks are disabled (--benchmark-disable); drop it"),
        (("--benchmark-skip",), "benchmarks are skipped (--benchmark-skip); drop it"),
        (("-n", "2"), "benchmarks are distributed by xdist (-n), *; drop it"),
    ],
    ids=["disable", "skip", "xdist"],
)
def test_a_run_that_will_not_measure_does_not_promise_to_store(
    storing: str, options: tuple[str, ...], complaint: str, project: Project
) -> None:
    result = project.latency(storing, *options)
    assert result.ret == ExitCode.FAULT
    result.stderr.fnmatch_lines([f"*nothing can be stored: {complaint}*"])
    assert project.histories() == []
    assert not (project.path / "run.json").exists()


def test_processes_of_xdist_do_not_accept(project: Project) -> None:
    result = project.run("--sdopt-accept", "-n", "2")
    assert result.ret == ExitCode.FAULT
    result.stderr.fnmatch_lines(["*nothing can be accepted: processes of xdist (-n)*"])
    assert not project.baselines.exists()


@pytest.mark.parametrize("storing", STORING)
def test_a_run_without_a_benchmark_stores_nothing_and_says_so(
    storing: str, stored: Project
) -> None:
    result = stored.run(storing, tests="benchmarks/test_work.py")
    assert result.ret == ExitCode.FAULT
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["nothing was stored: no benchmark of this run measured anything"])
    assert "PytestBenchmarkWarning" not in result.stdout.str() + result.stderr.str()
    assert stored.verdicts()["outcome"] == "fault"
    assert len(stored.histories()) == 1
    assert not (stored.path / "run.json").exists()


@pytest.mark.parametrize("storing", STORING)
def test_a_source_that_cannot_be_loaded_keeps_its_message(storing: str, project: Project) -> None:
    weights = next(project.source.glob("unet/*.safetensors"))
    broken = project.path / "broken"
    shutil.copytree(project.source, broken)
    (broken / "unet" / weights.name).write_bytes(b"none")
    result = project.pytester.runpytest(
        "benchmarks", "-k", "[baseline]", f"--sdopt-source={broken}", storing
    )
    assert result.ret == ExitCode.FAULT
    result.stdout.fnmatch_lines(["*broken cannot be loaded: *"])
    result.stdout.fnmatch_lines(["nothing was stored: no benchmark of this run measured anything"])
    assert "PytestBenchmarkWarning" not in result.stdout.str() + result.stderr.str()
    assert project.verdicts()["outcome"] == "fault"


def test_other_tests_store_nothing_either(project: Project) -> None:
    project.pytester.makepyfile(test_other="def test_other():\n    assert 1")
    source = f"--sdopt-source={project.source}"
    result = project.pytester.runpytest("test_other.py", "--benchmark-autosave", source)
    assert result.ret == ExitCode.FAULT
