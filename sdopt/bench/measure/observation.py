"""Watch a pipeline make one image: what ran, how often, on what, by whose code."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from sdopt.bench.measure.gpu_activity import GpuActivity, events_of, gpu_activity
from sdopt.bench.measure.own_work import on_meta
from sdopt.bench.measure.solver_watch import SeenSolver, watched_solver
from sdopt.bench.own.pipeline import OwnPipeline
from sdopt.engine.cuda_graphs import eager_calls
from sdopt.engine.modules import FUSED_MARK
from sdopt.pipelines.workload import Request, generate

if TYPE_CHECKING:
    from sdopt.pipelines.pipeline import LevelPipeline

Shapes = tuple[tuple[int, ...], ...]
PARTS = ("text_encoder", "unet", "decoder")
SHALLOW = "shallow"
CALL_MARK = "sdopt::call "
GRAPH_MARK = "## Call CompiledFxGraph"
"""How Inductor names each run of a compiled graph in a profile."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a part of the pipeline.

    `shapes` are those of its tensor arguments; `graphs` counts the Inductor graphs that ran inside
    it: 0 for eager code, more than 1 after a graph break; `fused` the engine's forward passes. A
    UNet call that reuses deep features has the part `shallow`; one of `twins` has two equal halves,
    which the engine computes as one as far as it can. `inputs` are all arguments of a call
    of a project's own module, on the meta device.
    """

    part: str
    shapes: Shapes
    dtype: str
    graphs: int = 0
    fused: int = 0
    twins: bool = False
    inputs: tuple[Any, Any] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What happened during one image.

    `channels_last` tells for the UNet and the decoder whether every weight of a convolution wider
    than 1 x 1 has that layout. `new_graphs` counts what Dynamo compiled and the engine captured
    meanwhile. `by_engine` is whether the engine generated the image; `contexts`, `embeddings`,
    `wholes`, `twins` and `float8_products` are what its UNet counted, see `FusedUNet`. `gpu` is
    what the device did during another image, or None without CUDA. `solver` is what moved the
    latents, and from which noise on.
    """

    calls: tuple[Call, ...]
    scheduler_class: str
    scheduler_algorithm: str | None
    scheduler_order: int | None
    scheduler_steps: int
    decoder_class: str
    channels_last: dict[str, bool]
    tf32: tuple[bool, ...]
    new_graphs: int
    by_engine: bool = False
    contexts: int = 0
    embeddings: int = 0
    wholes: int = 0
    twins: int = 0
    float8_products: int = 0
    gpu: GpuActivity | None = None
    solver: SeenSolver | None = field(default=None, compare=False, repr=False)

    def calls_of(self, part: str) -> tuple[Call, ...]:
        """The calls of one of PARTS, in order."""
        return tuple(call for call in self.calls if call.part == part)

    @property
    def unet_batches(self) -> tuple[int, ...]:
        """The batch size of every UNet call, shallow ones too."""
        return tuple(call.shapes[0][0] for call in self.unet_calls)

    @property
    def full_steps(self) -> tuple[int, ...]:
        """Which of the UNet calls evaluated all of it."""
        return tuple(i for i, call in enumerate(self.unet_calls) if call.part == "unet")

    @property
    def unet_calls(self) -> tuple[Call, ...]:
        """The UNet's calls, shallow ones too."""
        return tuple(call for call in self.calls if call.part in ("unet", SHALLOW))


def observe(pipeline: LevelPipeline, request: Request) -> Observation:
    """Make the request's image under watch; a pass of its own, never a timed one.

    In it CUDA graphs are not replayed, so that the code that was captured in them is seen. What the
    device does when they are is watched in a second pass.
    """
    calls: list[Call] = []
    tf32: list[bool] = []
    with ExitStack() as stack, eager_calls():
        for part, module in parts(pipeline).items():
            stack.enter_context(
                _recording(part, module, calls, keep=isinstance(pipeline, OwnPipeline))
            )
        stack.enter_context(_before_call(pipeline.unet, lambda: tf32.append(tf32_is_on())))
        solver = stack.enter_context(watched_solver(pipeline))
        graphs, by_engine = compiled_graphs(), _engine_steps(pipeline)
        counted = _counted(pipeline)
        with profiled(ProfilerActivity.CPU) as profiler:
            generate(pipeline, request)
        new_graphs = compiled_graphs() - graphs
        by_engine = _engine_steps(pipeline) - by_engine
        counted = {name: n - counted[name] for name, n in _counted(pipeline).items()}
    captures = _captures(pipeline)
    gpu = observe_gpu(pipeline, request) if pipeline.device.type == "cuda" else None
    return Observation(
        calls=_with_graphs(calls, _marked_times(profiler)),
        scheduler_class=type(pipeline.scheduler).__name__,
        scheduler_algorithm=pipeline.scheduler.config.get("algorithm_type"),
        scheduler_order=pipeline.scheduler.config.get("solver_order"),
        scheduler_steps=len(solver.steps) + by_engine,
        decoder_class=type(pipeline.vae).__name__,
        channels_last={
            "unet": is_channels_last(pipeline.unet),
            "decoder": is_channels_last(pipeline.vae.decoder),
        },
        tf32=tuple(tf32),
        new_graphs=new_graphs + _captures(pipeline) - captures,
        by_engine=by_engine > 0 and not solver.steps,
        **counted,
        gpu=gpu,
        solver=solver,
    )


def _engine_steps(pipeline: LevelPipeline) -> int:
    return pipeline.engine.steps_run if pipeline.engine else 0


def _captures(pipeline: LevelPipeline) -> int:
    return pipeline.engine.captures if pipeline.engine else 0


def _counted(pipeline: LevelPipeline) -> dict[str, int]:
    """What the engine's UNet has computed so far."""
    return {
        name: getattr(pipeline.fused_unet, name, 0)
        for name in ("contexts", "embeddings", "wholes", "twins", "float8_products")
    }


def observe_gpu(pipeline: LevelPipeline, request: Request) -> GpuActivity:
    """Make the request's image while the device is watched."""
    calls: list[Call] = []
    with ExitStack() as stack:
        # The engine calls no module when it replays a graph, and refuses hooks for that reason.
        for part, module in parts(pipeline).items() if pipeline.engine is None else ():
            stack.enter_context(_recording(part, module, calls))
        with profiled(ProfilerActivity.CPU, ProfilerActivity.CUDA) as profiler:
            generate(pipeline, request)
            torch.cuda.synchronize(pipeline.device)
    spans = {name: (start, end) for name, start, end in _marked_times(profiler)}
    marks = [(call.part, *spans[f"{CALL_MARK}{index}"]) for index, call in enumerate(calls)]
    return gpu_activity(
        events_of(_kineto_results(profiler), (CALL_MARK, GRAPH_MARK, FUSED_MARK)), marks
    )


def parts(pipeline: LevelPipeline) -> dict[str, Any]:
    """The modules behind PARTS."""
    if isinstance(pipeline, OwnPipeline):
        return dict(pipeline.parts)
    return {
        "text_encoder": pipeline.text_encoder,
        "unet": pipeline.unet,
        "decoder": pipeline.vae.decoder,
    }


def tf32_is_on() -> bool:
    """Whether float32 matrix products and convolutions may use TF32 at this moment."""
    return bool(torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32)


def compiled_graphs() -> int:
    """How many graphs Dynamo has compiled in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def is_channels_last(module: torch.nn.Module) -> bool:
    """Whether all weights of convolutions wider than 1 x 1 are channels-last, and there are some.

    Kernels of 1 x 1 have both layouts at once and prove nothing.
    """
    weights = [
        layer.weight
        for layer in module.modules()
        if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size != (1, 1)
    ]
    return bool(weights) and all(
        weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        for weight in weights
    )


@contextmanager
def profiled(*activities: ProfilerActivity) -> Iterator[profile]:
    """A profile of what runs inside, whose raw events can be read afterwards."""
    profiler = profile(activities=activities)
    with warnings.catch_warnings():
        # torch 2.11 warns of what it would do in a second cycle. `acc_events=True` would silence it
        # by linking all events at once, which takes seconds.
        warnings.filterwarnings("ignore", "Warning: Profiler clears events", UserWarning)
        profiler.start()
    try:
        yield profiler
    finally:
        profiler.stop()


@contextmanager
def _recording(part: str, module: Any, calls: list[Call], *, keep: bool = False) -> Iterator[None]:
    """Append a Call at each call of the module, and mark its time in the profile."""
    marks: list[Any] = []

    def begin(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        calls.append(
            Call(
                part=SHALLOW if kwargs.get("deep") is not None else part,
                shapes=tuple(tuple(tensor.shape) for tensor in tensors),
                twins=getattr(kwargs.get("hoisted"), "twins", False),
                dtype=str(tensors[0].dtype).removeprefix("torch.") if tensors else "",
                inputs=(on_meta(args), on_meta(kwargs)) if keep else None,
            )
        )
        marks.append(record_function(f"{CALL_MARK}{len(calls) - 1}"))
        marks[-1].__enter__()

    def end(*_: Any) -> None:
        marks.pop().__exit__(None, None, None)

    handles = (
        module.register_forward_pre_hook(begin, with_kwargs=True),
        module.register_forward_hook(end),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _before_call(module: Any, action: Callable[[], None]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(lambda *_: action())
    try:
        yield
    finally:
        handle.remove()


def _marked_times(profiler: profile) -> list[tuple[str, int, int]]:
    """Name, start and end in ns of every Inductor graph, fused pass and mark of a call.

    Read from the raw trace: `profiler.events()` takes seconds to link the other 100,000 events.
    """
    return [
        (event.name(), event.start_ns(), event.end_ns())
        for event in _kineto_results(profiler).events()
        if event.name().startswith((GRAPH_MARK, FUSED_MARK, CALL_MARK))
        # A region that the host marks appears a second time, around its work on the GPU.
        and str(event.device_type()) == "DeviceType.CPU"
    ]


def _kineto_results(profiler: profile) -> Any:
    results = profiler.profiler.kineto_results if profiler.profiler else None
    if results is None:
        raise RuntimeError("the profiler recorded nothing; is another profiler running?")
    return results


def _with_graphs(calls: list[Call], times: list[tuple[str, int, int]]) -> tuple[Call, ...]:
    """Give each call the numbers of Inductor graphs and fused passes that ran within its mark."""
    marks = {name: (start, end) for name, start, end in times if name.startswith(CALL_MARK)}

    def inside(kind: str, index: int) -> int:
        begin, finish = marks[f"{CALL_MARK}{index}"]
        return sum(
            name.startswith(kind) and begin <= start and end <= finish for name, start, end in times
        )

    return tuple(
        replace(call, graphs=inside(GRAPH_MARK, index), fused=inside(FUSED_MARK, index))
        for index, call in enumerate(calls)
    )
