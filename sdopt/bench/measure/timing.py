"""Time of one whole image, its stages, and the first call of a process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

import torch

from sdopt.bench.measure.gpu_state import GpuState, watched
from sdopt.bench.measure.observation import compiled_graphs
from sdopt.bench.measure.rounds import SUSPICIOUS_MIB, growth_of, watched_rounds
from sdopt.bench.own.pipeline import core
from sdopt.levels import Level
from sdopt.pipelines.workload import Request, generate
from sdopt.util.replaced import replaced

if TYPE_CHECKING:
    from sdopt.pipelines.pipeline import LevelPipeline

ROUNDS = {"cpu": 7, "cuda": 15}
EAGER_CUDA_ROUNDS = 7
"""A second and more each, most of it the host's, and what varies is the process, not the round."""
WARMUP_ROUNDS = 1
STAGE_ROUNDS = 3


class Benchmark(Protocol):
    """The part of pytest-benchmark's fixture that is used here."""

    stats: Any
    disabled: bool

    def pedantic(self, target: Any, **options: Any) -> Any:
        """Call `target` for `warmup_rounds` and then for `rounds` timed rounds."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Host wall time of one whole image, in milliseconds, the device synchronized at both ends.

    `rounds_ms` is empty when pytest-benchmark was told not to measure. `stage_ms` holds the medians
    of text, denoise and decode, from passes of their own. `gpu` was read right after the rounds;
    `disturbances` says what voids them. `graphs_in_rounds` and `growth_mib` are those of `Rounds`,
    None where no round was watched.
    """

    rounds_ms: tuple[float, ...]
    stage_ms: dict[str, float]
    gpu: GpuState | None = None
    disturbances: tuple[str, ...] = ()
    graphs_in_rounds: int | None = None
    growth_mib: float | None = None

    @property
    def median_ms(self) -> float | None:
        """The median round; None without rounds."""
        return median(self.rounds_ms) if self.rounds_ms else None


@dataclass(frozen=True, kw_only=True)
class FirstCall:
    """The first image of a pipeline in this process, compilation included.

    `compile_cache` is 'cold' if Inductor had to generate code, 'warm' if all of it came from the
    cache on disk, 'shared' if an earlier level of this process had compiled it, 'eager' otherwise.
    """

    seconds: float
    compile_cache: str


def latency(pipeline: LevelPipeline, request: Request, benchmark: Benchmark) -> Latency:
    """Time the request with pytest-benchmark: warm-up and rounds run the real number of steps."""
    device = pipeline.device

    def one_image() -> None:
        generate(pipeline, request)
        synchronize(device)

    def before_round() -> None:
        synchronize(device)
        seen.read()

    with watched(device) as watch, watched_rounds(device) as seen:
        benchmark.pedantic(
            one_image,
            setup=before_round,
            rounds=rounds_for(pipeline.level, device),
            warmup_rounds=WARMUP_ROUNDS,
        )
        seen.read()
    growth_mib = seen.growth_mib(WARMUP_ROUNDS)
    if growth_mib is not None and growth_mib > SUSPICIOUS_MIB:
        growth_mib = growth_of(one_image, device)
    rounds = () if benchmark.disabled else benchmark.stats.stats.data
    return Latency(
        rounds_ms=tuple(1e3 * seconds for seconds in rounds),
        stage_ms=stage_times(pipeline, request),
        gpu=watch.state,
        disturbances=watch.disturbances,
        graphs_in_rounds=seen.new_graphs(WARMUP_ROUNDS),
        growth_mib=growth_mib,
    )


def rounds_of(run: Callable[[], object], device: torch.device) -> tuple[float, ...]:
    """Wall times in ms of what pytest-benchmark does not run, by the clock of `latency`.

    `run` runs WARMUP_ROUNDS times first.
    """
    for _ in range(WARMUP_ROUNDS):
        run()
    return tuple(elapsed_ms(run, device) for _ in range(ROUNDS[device.type]))


def elapsed_ms(run: Callable[[], object], device: torch.device) -> float:
    """Host wall time of one call, the device synchronized at both ends."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def rounds_for(level: Level, device: torch.device) -> int:
    """How many rounds estimate one process's median."""
    eager = not level.compiled and not level.whole_graph
    return EAGER_CUDA_ROUNDS if eager and device.type == "cuda" else ROUNDS[device.type]


def first_call(pipeline: LevelPipeline, request: Request) -> FirstCall:
    """Make the pipeline's first image and say where its compiled code came from."""
    graphs, misses = compiled_graphs(), _cache_misses()
    start = time.perf_counter()
    generate(pipeline, request)
    synchronize(pipeline.device)
    seconds = time.perf_counter() - start
    if compiled_graphs() == graphs:
        return FirstCall(
            seconds=seconds, compile_cache="shared" if pipeline.level.compiled else "eager"
        )
    cold = _cache_misses() > misses
    return FirstCall(seconds=seconds, compile_cache="cold" if cold else "warm")


def image_ms(pipeline: LevelPipeline, request: Request) -> float:
    """About how long a warm image takes: the median of a few."""
    return median(_wall_ms(pipeline, request) for _ in range(STAGE_ROUNDS))


def _wall_ms(pipeline: LevelPipeline, request: Request) -> float:
    synchronize(pipeline.device)
    start = time.perf_counter()
    generate(pipeline, request)
    synchronize(pipeline.device)
    return 1e3 * (time.perf_counter() - start)


def stage_times(pipeline: LevelPipeline, request: Request) -> dict[str, float]:
    """Medians in ms of text encoding, denoising and decoding, by the clock of the device.

    CUDA events on a GPU, the host's clock on the CPU.
    """
    rounds = [_one_stage_round(pipeline, request) for _ in range(STAGE_ROUNDS)]
    return {stage: median(times[stage] for times in rounds) for stage in rounds[0]}


def _one_stage_round(pipeline: LevelPipeline, request: Request) -> dict[str, float]:
    if pipeline.engine is not None:
        generate(pipeline, request)
        return pipeline.engine.stage_ms()
    clock = _CudaClock() if pipeline.device.type == "cuda" else _HostClock()
    ticks: dict[str, Any] = {}

    def tick(name: str) -> None:
        ticks[name] = clock.now()

    with _around(core(pipeline), "encode_prompt", tick), _around(pipeline.vae, "decode", tick):
        generate(pipeline, request)
    stages = {
        "text": ("encode_prompt begins", "encode_prompt ends"),
        "denoise": ("encode_prompt ends", "decode begins"),
        "decode": ("decode begins", "decode ends"),
    }
    return {
        stage: clock.elapsed_ms(ticks[start], ticks[end])
        for stage, (start, end) in stages.items()
        if start in ticks and end in ticks  # a level that left a part out is told by its work
    }


@contextmanager
def _around(owner: Any, method: str, tick: Any) -> Iterator[None]:
    """Call `tick` with '<method> begins' and '<method> ends' around each call of the method."""
    original = getattr(owner, method, None)
    if original is None:  # a project's own pipeline may do it otherwise
        yield
        return

    def timed(*args: Any, **kwargs: Any) -> Any:
        tick(f"{method} begins")
        result = original(*args, **kwargs)
        tick(f"{method} ends")
        return result

    with replaced(owner, method, timed):
        yield


class _HostClock:
    def now(self) -> float:
        return time.perf_counter()

    def elapsed_ms(self, start: float, end: float) -> float:
        return 1e3 * (end - start)


class _CudaClock:
    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def elapsed_ms(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return float(start.elapsed_time(end))


def synchronize(device: torch.device) -> None:
    """Wait for the device; the CPU is always done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cache_misses() -> int:
    from torch._dynamo.utils import counters

    return int(
        counters["aot_autograd"]["autograd_cache_miss"] + counters["inductor"]["fxgraph_cache_miss"]
    )
