"""The fixtures that benchmarks are written with; docs name those that a user's own may take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from sdopt.bench.judge.gate import Gate
from sdopt.bench.own.ladder import OwnLevel
from sdopt.bench.own.pipeline import core
from sdopt.bench.plugin.keys import SESSION
from sdopt.bench.session import BaselineStore, PipelinePool, RunContext
from sdopt.errors import UnsupportedCardError
from sdopt.levels import Level
from sdopt.pipelines.workload import Request

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from sdopt.bench.measure import FirstCall, Observation, Promise
    from sdopt.bench.measure.generated import Generated
    from sdopt.bench.measure.latents import Doubles, Latents
    from sdopt.bench.measure.quality import Images
    from sdopt.bench.measure.repeat import Repeat
    from sdopt.pipelines.pipeline import LevelPipeline


@pytest.fixture(scope="session")
def run(pytestconfig: pytest.Config) -> RunContext:
    """What this run is of: settings, source, requests, device, environment."""
    return pytestconfig.stash[SESSION].run


@pytest.fixture(scope="session")
def pool(pytestconfig: pytest.Config) -> PipelinePool:
    """The pipelines of this run."""
    return pytestconfig.stash[SESSION].pool


@pytest.fixture(scope="session")
def store(pytestconfig: pytest.Config) -> BaselineStore:
    """What is stored for this run, and stores it under --sdopt-accept."""
    return pytestconfig.stash[SESSION].store


@pytest.fixture(scope="session")
def gate(pytestconfig: pytest.Config) -> Gate:
    """The judge of this run's numbers."""
    return pytestconfig.stash[SESSION].gate


@pytest.fixture(scope="session")
def level(request: pytest.FixtureRequest, run: RunContext) -> Level:
    """Each level of the ladder in turn; `-k "[final]"` picks one.

    One that this card cannot run is skipped: the check of completeness fails for it where a run
    with it was stored.
    """
    level = run.levels[request.param]
    if not isinstance(level, OwnLevel):
        from sdopt.pipelines.device_limits import check_capability

        try:
            check_capability(level, run.device)
        except UnsupportedCardError as error:
            pytest.skip(str(error))
    return level


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Levels are known once the project's conftest was asked for its own.

    A test that brings its own `level`, as a fixture or a parameter, keeps it.
    """
    marks = metafunc.definition.iter_markers("parametrize")
    found = metafunc.definition._fixtureinfo.name2fixturedefs.get("level", ())
    is_ours = bool(found) and found[-1].func.__module__ == __name__
    if is_ours and not any("level" in _names(mark) for mark in marks):
        levels = list(metafunc.config.stash[SESSION].run.levels)
        metafunc.parametrize("level", levels, indirect=True, scope="session")


def _names(mark: pytest.Mark) -> list[str]:
    """The arguments that a test is parametrized with."""
    given = mark.args[0] if mark.args else mark.kwargs.get("argnames", ())
    return [name.strip() for name in (given.split(",") if isinstance(given, str) else given)]


@pytest.fixture(scope="session")
def warm_pipeline(pool: PipelinePool, level: Level) -> Iterator[tuple[LevelPipeline, FirstCall]]:
    """The level's pipeline and its first call."""
    with pool.warm(level) as pipeline_and_first_call:
        yield pipeline_and_first_call


@pytest.fixture(scope="session")
def pipeline(warm_pipeline: tuple[LevelPipeline, FirstCall]) -> LevelPipeline:
    """The level's pipeline, warm."""
    return warm_pipeline[0]


@pytest.fixture(scope="session")
def first_call(warm_pipeline: tuple[LevelPipeline, FirstCall]) -> FirstCall:
    """The first image of the level's pipeline, compilation included."""
    return warm_pipeline[1]


@pytest.fixture(scope="session")
def image_request(run: RunContext) -> Request:
    """The request that is timed and watched."""
    return run.workload.requests[0]


@pytest.fixture(scope="session")
def dtype(run: RunContext, level: Level) -> str:
    """What the level has to compute in on this device."""
    return run.dtype_of(level)


@pytest.fixture(scope="session")
def observation(pipeline: LevelPipeline, image_request: Request) -> Iterator[Observation]:
    """What happened inside the warm pipeline during one image."""
    from sdopt.bench.measure import observe

    seen = observe(pipeline, image_request)
    yield seen
    # It has every step's latents, and the session's last test holds it while the pipeline is freed.
    seen.__dict__.clear()


@pytest.fixture(scope="session")
def promise(run: RunContext, level: Level, image_request: Request) -> Promise | None:
    """The solver and the noise that the level promises of that image; a project's own, none."""
    if isinstance(level, OwnLevel):
        return None
    from sdopt.bench.measure import promise_of

    return promise_of(run.source, level, image_request, run.dtype)


@pytest.fixture(scope="session")
def own_proof(level: Level, pipeline: LevelPipeline, observation: Observation) -> tuple[str, ...]:
    """What a project's own level says did not take effect: nothing, if all is well."""
    proof = level.proof if isinstance(level, OwnLevel) else None
    return tuple(proof(core(pipeline), observation)) if proof else ()


@pytest.fixture(scope="session")
def kept_state(pool: PipelinePool, level: Level, pipeline: LevelPipeline) -> tuple[str, ...]:
    """What the warm pipeline kept from earlier requests: nothing, if all is well."""
    return pool.kept_state(level, pipeline)


@pytest.fixture(scope="session")
def generated(pool: PipelinePool, level: Level, pipeline: LevelPipeline) -> Generated:
    """What the level makes of every prompt: images, latents, and the first one twice."""
    return pool.generated(level, pipeline)


@pytest.fixture(scope="session")
def images(generated: Generated) -> Images:
    """The level's image of every prompt, float32 from 0 to 1."""
    return generated.images


@pytest.fixture(scope="session")
def latents(generated: Generated) -> Latents:
    """What the level's image of every prompt was decoded from, float32."""
    return generated.latents


@pytest.fixture(scope="session")
def double(generated: Generated) -> Doubles:
    """The first image's latents in float64; empty without a pipeline on the CPU."""
    return generated.doubles


@pytest.fixture(scope="session")
def repeat(generated: Generated) -> Repeat:
    """The first prompt generated twice by the level."""
    return generated.repeat


@pytest.fixture(scope="session")
def reference_images(pool: PipelinePool, level: Level) -> Mapping[str, NDArray[np.uint8]] | None:
    """The reference level's image of every prompt, uint8."""
    from sdopt.bench.measure.quality import to_uint8

    reference = pool.reference(level)
    if reference is None:
        return None
    return {name: to_uint8(image) for name, image in reference.images.items()}


@pytest.fixture(scope="session")
def ground_truth_images(run: RunContext) -> Mapping[str, NDArray[np.uint8]]:
    """The true rendering of every prompt that has one, uint8."""
    from sdopt.bench.measure.ground_truth import ground_truth

    return ground_truth(run.source, run.workload.requests)
