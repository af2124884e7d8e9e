"""The pytest plugin: options, fixtures and hooks; glue between pytest and the suite.

PYTEST_DONT_REWRITE: it asserts nothing, and `-p sdopt.bench.plugin.carry` imports it before
any conftest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.junitxml import xml_key

from sdopt.bench.judge.gate import Gate
from sdopt.bench.judge.known import RUN
from sdopt.bench.judge.verdict import exit_code
from sdopt.bench.plugin import ab, compile_cache, raised, refusals, unfinished
from sdopt.bench.plugin.options import add_options, settings_of
from sdopt.bench.report.terminal import absence_note, blind_note, ladder_table, power_note
from sdopt.bench.report.verdicts import write_verdicts
from sdopt.bench.session.suite import Suite
from sdopt.bench.stored import history
from sdopt.errors import SdoptError, UnknownNameError
from sdopt.levels import LEVELS, Level, get_level
from sdopt.pipelines.workload import Request
from sdopt.util.partial_files import SUFFIX, remove_stale
from sdopt.util.progress import Progress

if TYPE_CHECKING:
    from sdopt.bench.measure import FirstCall, Observation, Promise
    from sdopt.bench.measure.latents import Doubles, Latents
    from sdopt.bench.measure.repeat import Repeat
    from sdopt.bench.plugin.selftest import Bench  # noqa: F401 - for the annotation of BENCH
    from sdopt.bench.session.suite import Pictures, StoredPictures
    from sdopt.pipelines.pipeline import LevelPipeline

SUITE = pytest.StashKey[Suite]()
UNJUDGED = pytest.StashKey["Unjudged"]()
STORING = pytest.StashKey[refusals.NothingStored]()
COMPARISON = pytest.StashKey[ab.Comparison]()
BENCH = pytest.StashKey["Bench"]()
DESELECTED = pytest.StashKey[Collection[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the suite."""
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Take over what pytest-benchmark would judge or store, then resolve source and prompts."""
    unfinished.begin(config)
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("sdopt needs pytest-benchmark; drop -p no:benchmark")
    # A file of its own: while a test runs, pytest captures the process's standard error.
    stream = os.fdopen(os.dup(2), "w")
    config.add_cleanup(stream.close)
    suite = Suite(settings=settings_of(config), progress=Progress(stream))
    try:
        suite.workload  # noqa: B018 - a bad source or prompts file stops the run here
    except SdoptError as error:
        raise pytest.UsageError(str(error)) from error
    compile_cache.begin(config, suite)
    config.stash[SUITE] = suite
    config.stash[UNJUDGED] = Unjudged(suite)
    config.pluginmanager.register(config.stash[UNJUDGED], "sdopt-unjudged")
    config.pluginmanager.register(raised.Raised(suite), "sdopt-raised")
    config.stash[STORING] = refusals.NothingStored(config)
    config.pluginmanager.register(config.stash[STORING], "sdopt-nothing-stored")
    config.option.benchmark_save_data = True
    config.option.benchmark_quiet = not config.option.benchmark_verbose
    # An existing folder, so that pytest-benchmark makes none; `_HistoryStorage` replaces it.
    config.option.benchmark_storage = f"file://{config.rootpath}"
    config.option.benchmark_compare = None


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Device, source and baseline set."""
    return config.stash[SUITE].header()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Let pytest-benchmark store through this project's history, if there is something to store."""
    suite = session.config.stash[SUITE]
    if not os.environ.get("PYTEST_XDIST_WORKER"):
        suite.tidy()
        remove_stale(session.config.rootpath.glob(f"{unfinished.VERDICTS}*{SUFFIX}"))
    refusals.refuse_to_store_nothing(session.config, suite.settings.unfit)
    session.config._benchmarksession.storage = _HistoryStorage(suite, session)  # type: ignore[attr-defined]


class _HistoryStorage:
    """The one method of pytest-benchmark's storage that saving a run needs."""

    def __init__(self, suite: Suite, session: pytest.Session) -> None:
        self.suite = suite
        self.session = session
        self.note = ""

    def save(self, output_json: Mapping[str, Any], save: str) -> None:
        """Store the run whole, unless a test failed: a baseline nobody vouches for is none."""
        failed = self.session.testsfailed
        if failed:
            self.note = f"this run was not saved: {failed} of its tests failed"
        elif output_json["benchmarks"]:
            partial = _left_benchmarks_out(self.session.config)
            folder = self.suite.history_folder
            path = history.save_run(folder, save, output_json, partial=partial)
            self.note = f"saved this run as {path}"
            if partial:
                self.note += (
                    "\nit left benchmarks out: --benchmark-compare takes the newest whole run, and "
                    "this one only where there is none, or if you name it: "
                    f"--benchmark-compare={path.stem[:4]}"
                )


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Let the machine say what its runs are filed under, which for a GPU nothing else says."""
    machine_info["sdopt"] = config.stash[SUITE].hardware.key


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Give every benchmark its level's measurements, and the run its identity."""
    suite = config.stash[SUITE]
    output_json["sdopt"] = suite.history_block()
    for entry in output_json["benchmarks"]:
        level = get_level(entry["params"]["level"])
        measured = {k: v for k, v in suite.gate.measured[level.name].items() if k != "latency_ms"}
        entry["extra_info"] = {**suite.identity(level), **measured}
        entry["params"] = {"level": level.name}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> Iterator[None]:
    """Under --benchmark-compare, end with a check that nothing stored was left unjudged.

    What -k and the like take away while this hook waits was left out on request. Under
    --sdopt-selftest they pick from the faults, under --sdopt-ab from the benchmarks.
    """
    if items and config.option.sdopt_selftest:
        items[:] = _faults(session, config)
    collected = {item.nodeid for item in items}
    yield
    if collected and not items and not config.option.sdopt_selftest:
        _check_level(config.option.keyword)
    if items and (config.option.sdopt_ab or config.option.sdopt_selftest):
        config.stash[DESELECTED] = ()
        if config.option.sdopt_ab:
            items[:], config.stash[COMPARISON] = ab.paired_items(
                session, items, config.stash[SUITE], config.option.sdopt_ab
            )
        return
    config.stash[DESELECTED] = collected - {item.nodeid for item in items}
    nothing_selected = collected and not items  # then pytest's own exit status 5 has to stand
    if config.stash[SUITE].settings.compare is not None and not nothing_selected:
        items.append(
            CompletenessCheck.from_parent(session, name="every stored benchmark is judged")
        )


def _check_level(keyword: str) -> None:
    """Raise UsageError for a -k that selected nothing and names a level that does not exist."""
    for name in re.findall(r"\[([^\[\]]*)\]", keyword or ""):
        if name not in LEVELS:
            raise pytest.UsageError(str(UnknownNameError("level", name, LEVELS)))


def _faults(session: pytest.Session, config: pytest.Config) -> list[pytest.Item]:
    from sdopt.bench.plugin import selftest

    bench = selftest.Bench(config.stash[SUITE], config.rootpath / RUN.split()[1])
    config.add_cleanup(bench.close)
    config.stash[BENCH] = bench
    return selftest.fault_items(session, bench)


class CompletenessCheck(pytest.Item):
    """Fails if a benchmark of the stored run was removed, renamed, skipped or not run."""

    judges = True

    def runtest(self) -> None:
        """Compare the tests that reached a verdict with those of the stored run."""
        suite = self.config.stash[SUITE]
        if suite.gate.refusal:
            raise IncompleteRun(suite.gate.refusal)
        missing = suite.unjudged(self.config.stash[DESELECTED], _scopes(self.config))
        if missing:
            raise IncompleteRun(
                f"{len(missing)} tests of the stored run {suite.gate.history} reached no verdict "
                f"in this run: {', '.join(missing)}\n  next: put them back, or store a run without "
                f"them: {suite.settings.command} --benchmark-autosave"
            )

    def repr_failure(self, excinfo: Any, style: Any = None) -> str:
        """The message alone; a traceback into this file would tell nothing."""
        if isinstance(excinfo.value, IncompleteRun):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo, style))

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where pytest says that this check stands."""
        return self.config.rootpath, None, self.name


class IncompleteRun(Exception):
    """A run that left something unjudged."""


def _scopes(config: pytest.Config) -> list[str]:
    """What the command line asks for, as prefixes of node ids."""
    scopes = []
    for argument in config.args:
        path, separator, test = argument.partition("::")
        absolute = (config.invocation_params.dir / path).resolve()
        inside = os.path.relpath(absolute, config.rootpath).replace(os.sep, "/")
        scopes.append(inside + separator + test)
    return scopes


def _left_benchmarks_out(config: pytest.Config) -> bool:
    """Whether this run was asked for less than all of benchmarks/."""
    everything = {".", RUN.split()[1].rstrip("/")}
    whole = everything & set(_scopes(config))
    return bool(not whole or config.stash[DESELECTED] or config.option.ignore)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Remember which tests reached a verdict, and tell JUnit which."""
    if not _is_benchmark(item):
        yield
        return
    suite = item.config.stash[SUITE]
    before = len(suite.gate.verdicts)
    try:
        yield
    finally:
        reached = suite.gate.verdicts[before:]
        if reached:
            suite.judged.append(item.nodeid)
        if any(not verdict.passed for verdict in reached):
            suite.failed_by_verdict.append(item.nodeid)
        item.user_properties += [(f"sdopt {v.metric}", v.outcome.value) for v in reached]


def _is_benchmark(item: pytest.Item) -> bool:
    return "gate" in getattr(item, "fixturenames", ())


def _judges(item: pytest.Item) -> bool:
    return _is_benchmark(item) or getattr(item, "judges", False)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Benchmarks outside of benchmarks/ take the place of an earlier run's verdicts as well."""
    shows = unfinished.only_shows(session.config.option)
    if any(map(_judges, session.items)) and not shows:
        unfinished.mark(session.config)


class Unjudged:
    """Collects the benchmarks, and the check of their number, that fail without a verdict."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.node_ids: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called for setup, call and teardown of every test."""
        by_verdict = report.when == "call" and report.nodeid in self.suite.failed_by_verdict
        of_a_level = getattr(report, raised.OF_A_LEVEL, False)
        if report.failed and not by_verdict and not of_a_level:
            self.node_ids.append(report.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Turn the verdicts into the exit code, JUnit's property and verdicts.json."""
    config = session.config
    suite = config.stash[SUITE]
    judging = any(_judges(item) for item in session.items)
    # The controller of a distributed run has no items of its own.
    judging = judging or bool(suite.settings.unfit and suite.settings.compare is not None)
    judging = judging and not unfinished.only_shows(config.option)
    if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return
    if not judging:
        if session.items and not unfinished.only_shows(config.option):
            unfinished.end_without_verdicts(config)
        return
    if os.environ.get("PYTEST_XDIST_WORKER"):
        return  # its controller does this for all
    unjudged = config.stash[UNJUDGED].node_ids
    # A broken file of limits or counts leaves no gate: each benchmark failed in its setup.
    verdicts = suite.gate.verdicts if "gate" in vars(suite) else []
    code = exit_code(verdicts, broken=bool(unjudged or config.stash[STORING].reason))
    session.exitstatus = int(code)
    xml = config.stash.get(xml_key, None)
    if xml:
        xml.add_global_property("sdopt_outcome", code.name.lower())
    path = config.rootpath / unfinished.VERDICTS
    run = suite.history_block()
    if COMPARISON in config.stash:
        comparison = config.stash[COMPARISON]
        run |= {
            "base": comparison.base,
            "pairs": comparison.samples(),
            "removed": comparison.removed,
        }
    write_verdicts(path, verdicts, code, unjudged, run)


@pytest.fixture(scope="session")
def suite(pytestconfig: pytest.Config) -> Suite:
    """The state of this run."""
    return pytestconfig.stash[SUITE]


@pytest.fixture(scope="session", params=list(LEVELS))
def level(request: pytest.FixtureRequest) -> Level:
    """Each level of the ladder in turn; `-k "[final]"` picks one."""
    return get_level(request.param)


@pytest.fixture(scope="session")
def warm_pipeline(suite: Suite, level: Level) -> Iterator[tuple[LevelPipeline, FirstCall]]:
    """The level's pipeline and its first call."""
    with suite.warm_pipeline(level) as pipeline_and_first_call:
        yield pipeline_and_first_call


@pytest.fixture(scope="session")
def pipeline(warm_pipeline: tuple[LevelPipeline, FirstCall]) -> LevelPipeline:
    """The level's pipeline, warm."""
    return warm_pipeline[0]


@pytest.fixture(scope="session")
def first_call(warm_pipeline: tuple[LevelPipeline, FirstCall]) -> FirstCall:
    """The first picture of the level's pipeline, compilation included."""
    return warm_pipeline[1]


@pytest.fixture(scope="session")
def image_request(suite: Suite) -> Request:
    """The request that is timed and watched."""
    return suite.workload.requests[0]


@pytest.fixture(scope="session")
def dtype(suite: Suite) -> str:
    """What a level has to compute in on this device."""
    return suite.dtype


@pytest.fixture(scope="session")
def observation(pipeline: LevelPipeline, image_request: Request) -> Observation:
    """What happened inside the warm pipeline during one picture."""
    from sdopt.bench.measure import observe

    return observe(pipeline, image_request)


@pytest.fixture(scope="session")
def promise(suite: Suite, level: Level, image_request: Request) -> Promise:
    """The solver and the noise that the level promises of that picture."""
    from sdopt.bench.measure import promise_of

    return promise_of(suite.source, level, image_request, suite.dtype)


@pytest.fixture(scope="session")
def kept_state(suite: Suite, level: Level, pipeline: LevelPipeline) -> tuple[str, ...]:
    """What the warm pipeline kept from earlier requests: nothing, if all is well."""
    return suite.kept_state(level, pipeline)


@pytest.fixture(scope="session")
def pictures(suite: Suite, level: Level, pipeline: LevelPipeline) -> Pictures:
    """The level's picture of every prompt, float32 from 0 to 1."""
    return suite.pictures(level, pipeline)


@pytest.fixture(scope="session")
def latents(suite: Suite, level: Level, pipeline: LevelPipeline) -> Latents:
    """What the level's picture of every prompt was decoded from, float32."""
    return suite.latents(level, pipeline)


@pytest.fixture(scope="session")
def double(suite: Suite, level: Level, pipeline: LevelPipeline) -> Doubles:
    """The first picture's latents in float64; empty without a pipeline on the CPU."""
    return suite.double(level, pipeline)


@pytest.fixture(scope="session")
def repeat(suite: Suite, level: Level, pipeline: LevelPipeline) -> Repeat:
    """The first prompt drawn twice by the level."""
    return suite.repeat(level, pipeline)


@pytest.fixture(scope="session")
def reference_pictures(suite: Suite, level: Level) -> StoredPictures | None:
    """The reference level's picture of every prompt, uint8."""
    return suite.reference_pictures(level)


@pytest.fixture(scope="session")
def true_pictures(suite: Suite) -> StoredPictures:
    """The true rendering of every prompt that has one, uint8."""
    return suite.true_pictures()


@pytest.fixture(scope="session")
def gate(suite: Suite) -> Gate:
    """The judge of this run's numbers."""
    return suite.gate


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The ladder table, then what was written."""
    suite = config.stash[SUITE]
    if BENCH in config.stash:
        from sdopt.bench.plugin import selftest

        terminalreporter.section("self-test")
        terminalreporter.write_line("\n".join(selftest.summary(config.stash[BENCH])))
        return
    if "gate" not in vars(suite):
        return  # no test of the ladder ran
    if COMPARISON in config.stash:
        comparison = config.stash[COMPARISON]
        terminalreporter.section(f"{comparison.base} against the working tree: {suite.hardware}")
        terminalreporter.write_line("\n".join(ab.summary(comparison, suite.gate.verdicts)))
        return
    table = ladder_table(list(LEVELS), suite.gate.measured, suite.gate.verdicts)
    if table:
        terminalreporter.section(f"ladder: {suite.source.name} on {suite.hardware}")
        terminalreporter.write_line("\n".join(table))
        terminalreporter.write_line(
            "A cost in parentheses is the samplers' difference, not a loss."
        )
        store = f"{suite.gate.command} --benchmark-autosave"
        notes = (
            *power_note(suite.gate.measured),
            *blind_note(suite.gate.verdicts, store),
            *absence_note(),
        )
        for line in notes:
            terminalreporter.write_line(line)
    if suite.accepted:
        folder = suite.settings.baselines_root / "images" / suite.baseline_set
        terminalreporter.write_line(f"stored {len(suite.accepted)} baseline images in {folder}")
    note = config._benchmarksession.storage.note  # type: ignore[attr-defined]
    if note:
        terminalreporter.write_line(note)
