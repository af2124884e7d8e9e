"""A whole picture as one CUDA graph: text encoder, denoising loop and decoder.

The host tokenizes, draws the noise and launches once. Everything that a graph depends on is its
key; another prompt, seed or guidance scale only changes what it reads.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from sdopt.engine import ops
from sdopt.engine.modules import Hoisted, fuse_modules
from sdopt.engine.solver import GUIDANCE, Solver, solver_for
from sdopt.engine.watch import Watch
from sdopt.errors import SdoptError
from sdopt.levels import Level
from sdopt.optimizations import cuda_graphs

MOST_GRAPHS = 4
"""Kinds of pictures whose graphs are kept: sizes, numbers of steps or of pictures."""
STAGES = ("text", "denoise", "decode")

_one_at_a_time = threading.RLock()
"""Graphs share their inputs, outputs and memory: a second thread waits for the first."""


@dataclass(frozen=True)
class Kind:
    """What the kernels of a picture depend on: pictures at once, latents, steps, guidance."""

    images: int
    height: int
    width: int
    tokens: int
    steps: int
    guided_steps: int


class Tick(Protocol):
    """A moment between two stages: a CUDA event, or a HostTick."""

    def record(self) -> None:
        """Now, or when the device gets here."""

    def synchronize(self) -> None:
        """Wait until it was recorded."""

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds until `end`."""


class HostTick:
    """A moment by the host's clock."""

    seconds = 0.0

    def record(self) -> None:
        """Now."""
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        """The host is where it is."""

    def elapsed_time(self, end: HostTick) -> float:
        """Milliseconds until `end`."""
        return 1e3 * (end.seconds - self.seconds)


@dataclass(kw_only=True)
class Inputs:
    """What a graph reads: token ids (prompts, tokens), noise (B, H, W, 4), factors (steps, 6)."""

    ids: Tensor
    noise: Tensor
    factors: Tensor
    times: Tensor

    def on(self, device: torch.device) -> Inputs:
        """The same values on that device, in memory of their own."""
        return Inputs(
            ids=self.ids.to(device, copy=True),
            noise=self.noise.to(device, copy=True),
            factors=self.factors.to(device, copy=True),
            times=self.times.to(device, copy=True),
        )


@dataclass(kw_only=True)
class Captured:
    """A graph with the tensors it reads and writes; `ticks` are events between its stages.

    `latents` are what the decoder reads; `factors` is the table whose values its inputs hold.
    """

    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    picture: Tensor
    latents: Tensor
    ticks: list[Tick]
    factors: Tensor

    def read(self, inputs: Inputs) -> None:
        """Take their values over; the times are part of what a graph was captured for."""
        self.inputs.ids.copy_(inputs.ids)
        self.inputs.noise.copy_(inputs.noise)
        if inputs.factors is not self.factors:
            self.inputs.factors.copy_(inputs.factors)
            self.factors = inputs.factors


@dataclass(kw_only=True)
class PictureEngine:
    """Draws the pictures of one pipeline; `captures` counts the graphs that it made.

    `latents` are what the decoder got for the last picture, (B, 4, H, W), until the next one.
    """

    pipeline: Any
    level: Level
    captures: int = 0
    steps_run: int = 0
    graphs: OrderedDict[Kind, Captured] = field(default_factory=OrderedDict)
    solvers: dict[int, Solver] = field(default_factory=dict)
    ticks: Sequence[Tick] = ()
    latents: Tensor = field(default_factory=lambda: torch.empty(0))
    _pool: Any = None
    _watch: Watch = field(init=False)
    _built_of: tuple[Any, ...] = ()
    _tables_of: tuple[int, float, torch.device] | None = None
    _kept: tuple[Tensor, Tensor] = field(default_factory=lambda: (torch.empty(0), torch.empty(0)))
    _done: Any = None

    def __post_init__(self) -> None:
        self._built_of = self._parts()
        self._watch = Watch(self._built_of[:3])

    def draw(self, ids: Tensor, noise: Tensor, guidance_scale: float, steps: int) -> Tensor:
        """Pictures (B, 3, 8 * H, 8 * W) from -1 to 1, the caller's to keep.

        `ids` holds the prompts' tokens, with guidance the negative prompts' before them; `noise` is
        (B, 4, H, W). Both may still be on the host: what it sends later, the GPU waits for less.
        """
        with _one_at_a_time, torch.no_grad():
            images, _, height, width = noise.shape
            guided = self.level.guided_steps(steps) if ids.shape[0] > images else 0
            kind = Kind(images, height, width, ids.shape[1], steps, guided)
            self._check_parts()
            device = self.pipeline.unet.conv_in.weight.device
            times, factors = self._tables(steps, guidance_scale, device)
            noise = noise.permute(0, 2, 3, 1).contiguous()
            inputs = Inputs(ids=ids, noise=noise, factors=factors, times=times)
            if device.type == "cuda" and cuda_graphs.replaying():
                return self._replay_checked(inputs, kind)
            self._forget_what_changed()
            self.ticks = [HostTick() for _ in range(len(STAGES) + 1)]
            return self._run(inputs.on(device), kind, self.ticks)

    def stage_ms(self) -> dict[str, float]:
        """The last picture's time in each of STAGES, by the device's clock."""
        if not self.ticks:
            raise RuntimeError("no picture was drawn yet")
        self.ticks[-1].synchronize()
        pairs = zip(STAGES, pairwise(self.ticks), strict=True)
        return {stage: begin.elapsed_time(end) for stage, (begin, end) in pairs}

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """The timesteps and factors that the last picture was drawn with, on the device."""
        return self._kept

    def _tables(
        self, steps: int, guidance_scale: float, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Timesteps and factors on the device; the last ones are kept."""
        key = (steps, guidance_scale, device)
        if self._tables_of != key:
            solver = self._solver(steps)
            factors = solver.factors.clone()
            factors[:, GUIDANCE] = guidance_scale
            self._kept = (solver.timesteps.to(device, torch.float32), factors.to(device))
            self._tables_of = key
        return self._kept

    def _solver(self, steps: int) -> Solver:
        if steps not in self.solvers:
            self.solvers[steps] = solver_for(self.pipeline.scheduler, steps)
        return self.solvers[steps]

    def _replay_checked(self, inputs: Inputs, kind: Kind) -> Tensor:
        """Look at the weights while the GPU draws with them, a millisecond that nobody waits for.

        A graph of other weights has drawn for nothing then; the watch keeps what it read.
        """
        if kind not in self.graphs:
            self._forget_what_changed()
            return self._replay(inputs, kind)
        picture = self._replay(inputs, kind)
        return self._replay(inputs, kind) if self._forget_what_changed() else picture

    def _replay(self, inputs: Inputs, kind: Kind) -> Tensor:
        if self._done is not None:
            self._done.wait()
        captured = self.graphs.get(kind)
        if captured is None:
            captured = self._capture(inputs, kind)
            self.graphs[kind] = captured
            if len(self.graphs) > MOST_GRAPHS:
                self.graphs.popitem(last=False)
        self.graphs.move_to_end(kind)
        captured.read(inputs)
        captured.graph.replay()
        self.ticks, self.latents = captured.ticks, captured.latents
        picture = captured.picture.clone()
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record()
        return picture

    def _forget_what_changed(self) -> bool:
        """Drop all graphs if the modules or the weights that they read are others now.

        Raises SdoptError for modules that were patched: graphs and kernels would leave that out.
        """
        if patch := self._watch.patched():
            raise SdoptError(
                f"level {self.level.name!r} draws with graphs and kernels of its own, which would "
                f"leave out the {patch} that was put into a module; undo that, or use a level "
                "without the engine, such as 'final'"
            )
        changed = self._watch.has_changed()
        if changed:
            if self.graphs:
                torch.cuda.synchronize()  # one of them may still draw
            self.graphs.clear()
            self._pool = None  # it ended with the last of its graphs
            if self.level.fused:
                fuse_modules(self.pipeline)  # its joined weights are those of before
            self._watch = Watch(self._built_of[:3])
        return changed

    def _parts(self) -> tuple[Any, ...]:
        pipeline = self.pipeline
        return pipeline.text_encoder, pipeline.unet, pipeline.vae, pipeline.scheduler

    def _check_parts(self) -> None:
        """Raise SdoptError if a part of the pipeline is another one now."""
        if any(now is not then for now, then in zip(self._parts(), self._built_of, strict=True)):
            raise SdoptError(
                f"level {self.level.name!r}: a part of the pipeline was replaced after it was "
                "built; replace parts in the source's folder and load the level again"
            )

    def _capture(self, inputs: Inputs, kind: Kind) -> Captured:
        static = inputs.on(inputs.factors.device)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        self.captures += 1
        with cuda_graphs.eager_calls():
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._run(static, kind, [])
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            ticks = _external_events()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                picture = self._run(static, kind, ticks)
        return Captured(
            graph=graph,
            inputs=static,
            picture=picture,
            latents=self.latents,
            ticks=ticks,
            factors=inputs.factors,
        )

    def _run(self, inputs: Inputs, kind: Kind, ticks: Sequence[Tick]) -> Tensor:
        """Draw without a graph, or while one records."""
        marks = iter(ticks)
        _tick(marks)
        text = self.pipeline.text_encoder(inputs.ids)[0]
        _tick(marks)
        sample = self._denoise(inputs, kind, text)
        _tick(marks)
        vae = self.pipeline.vae
        self.latents = self._as_module_input((sample / vae.config.scaling_factor).to(text.dtype))
        picture: Tensor = vae.decode(self.latents, return_dict=False)[0]
        _tick(marks)
        return picture

    def _denoise(self, inputs: Inputs, kind: Kind, text: Tensor) -> Tensor:
        """The loop over all steps; latents (B, H, W, 4), float32."""
        sample: Tensor = inputs.noise.float() * self.pipeline.scheduler.init_noise_sigma
        before = torch.zeros_like(sample)
        copies = 2 if kind.guided_steps else 1
        x = torch.cat([sample.to(text.dtype)] * copies)
        hoisted = self._hoisted(inputs.times, text)
        full = set(self.level.full_steps(kind.steps, kind.guided_steps))
        deep = None
        for step in range(kind.steps):
            guided = step < kind.guided_steps
            if not guided and text.shape[0] > kind.images:
                text = text[kind.images :].clone()
                hoisted = [_without_unconditional(one, kind.images) for one in hoisted]
                deep = None if deep is None else deep[kind.images :]
            deep = None if step in full else deep
            noise, deep = self._predict(x, inputs.times[step], text, hoisted[step : step + 1], deep)
            copies = 2 if step + 1 < kind.guided_steps else 1
            x = ops.solver_step(noise, sample, before, inputs.factors[step], copies)
            self.steps_run += 1
        return sample

    def _predict(
        self, x: Tensor, time: Tensor, text: Tensor, hoisted: list[Hoisted], deep: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The predicted noise, and the deep features to reuse if the level does that."""
        more: dict[str, Any] = {"hoisted": hoisted[0]} if hoisted else {}
        if self.level.feature_cache:
            more |= {"store": True} if deep is None else {"deep": deep}
        sample = self._as_module_input(x)
        noise, *stored = self.pipeline.unet(
            sample, time, encoder_hidden_states=text, return_dict=False, **more
        )
        return noise.permute(0, 2, 3, 1).contiguous(), stored[0] if stored else deep

    def _as_module_input(self, x: Tensor) -> Tensor:
        """(B, H, W, C) as (B, C, H, W), laid out as the graphs of compiled modules know it."""
        first = x.permute(0, 3, 1, 2)
        return first if self.level.fused else first.contiguous()

    def _hoisted(self, times: Tensor, text: Tensor) -> list[Hoisted]:
        """What each step needs from its timestep and the prompts, or nothing if not hoisted."""
        if not self.level.hoisted:
            return []
        fused = self.pipeline.fused_unet
        context = fused.context(text)
        shifts = fused.shifts(times)
        return [
            Hoisted(shift={m: rows[step] for m, rows in shifts.items()}, context=context)
            for step in range(len(times))
        ]


def _external_events() -> list[Tick]:
    """Around and between STAGES; external ones can be read after a replay."""
    return [
        torch.cuda.Event(enable_timing=True, external=True)  # type: ignore[no-untyped-call]
        for _ in range(len(STAGES) + 1)
    ]


def _without_unconditional(hoisted: Hoisted, images: int) -> Hoisted:
    """The conditional half, which comes last."""
    halves = {m: (k[images:], v[images:]) for m, (k, v) in hoisted.context.items()}
    return Hoisted(shift=hoisted.shift, context=halves)


def _tick(marks: Any) -> None:
    event = next(marks, None)
    if event is not None:
        event.record()
