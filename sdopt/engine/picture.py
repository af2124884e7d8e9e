"""A whole picture as one CUDA graph: text encoder, denoising loop and decoder.

The host tokenizes, draws the noise and launches once. Everything that a graph depends on is its
key; another prompt, seed or guidance scale only changes what it reads.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import InitVar, dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from sdopt.engine import cuda_graphs, ops
from sdopt.engine.adapters import scaled_adapters
from sdopt.engine.fingerprint import differing
from sdopt.engine.modules import OTHER_LEVEL, Fused, Hoisted
from sdopt.engine.parts import GraphParts, Roots, parts_of
from sdopt.engine.solver import (
    GUIDANCE,
    Solver,
    check_unpatched,
    settings_of,
    solver_for,
)
from sdopt.errors import SdoptError
from sdopt.levels import Level

MOST_GRAPHS = 4
"""Kinds of pictures whose graphs are kept: sizes, numbers of steps or of pictures."""
STAGES = ("text", "denoise", "decode")
UNKNOWN = 2
"""What a flag is that the device has not written yet."""

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
    `flag`, on the host, says from `looked` on whether weights had other values when the graph
    began, and UNKNOWN until then.
    """

    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    picture: Tensor
    latents: Tensor
    ticks: list[Tick]
    factors: Tensor
    flag: Tensor
    looked: Any

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
    The pipeline has the engine, and so is not kept alive by it.
    """

    pipeline: InitVar[Any]
    level: Level
    captures: int = 0
    steps_run: int = 0
    graphs: OrderedDict[Kind, Captured] = field(default_factory=OrderedDict)
    solvers: dict[int, Solver] = field(default_factory=dict)
    ticks: Sequence[Tick] = ()
    latents: Tensor = field(default_factory=lambda: torch.empty(0))
    _pool: Any = None
    _owner: Any = field(init=False)
    _built_of: tuple[Any, ...] = field(init=False)
    _parts: Fused | GraphParts = field(init=False)
    _roots: Roots = field(init=False)
    _version: Hashable = None
    _scheduled: Hashable = None
    _tables_of: tuple[int, float, torch.device] | None = None
    _kept: tuple[Tensor, Tensor] = field(default_factory=lambda: (torch.empty(0), torch.empty(0)))
    _done: Any = None

    def __post_init__(self, pipeline: Any) -> None:
        self._owner = weakref.ref(pipeline)
        self._built_of = tuple(map(weakref.ref, parts_of(pipeline).values()))
        self._roots = Roots(pipeline, self.level.name)
        self._parts = pipeline.fused or GraphParts(pipeline, self.level.name)
        self._version = self._parts.version
        self._scheduled = settings_of(pipeline.scheduler)

    @property
    def owner(self) -> Any:
        """The pipeline."""
        pipeline = self._owner()
        if pipeline is None:
            raise SdoptError(f"level {self.level.name!r}: the pipeline of this engine is gone")
        return pipeline

    def draw(
        self,
        ids: Tensor,
        noise: Tensor,
        guidance_scale: float,
        steps: int,
        adapter_scale: float = 1.0,
    ) -> Tensor:
        """Pictures (B, 3, 8 * H, 8 * W) from -1 to 1, the caller's to keep.

        `ids` holds the prompts' tokens, with guidance the negative prompts' before them; `noise` is
        (B, 4, H, W). Both may still be on the host: what it sends later, the GPU waits for less.
        `adapter_scale` multiplies LoRA for this call.
        """
        adapted = (self.owner.unet, self.owner.text_encoder)
        with _one_at_a_time, torch.no_grad(), scaled_adapters(adapted, adapter_scale):
            images, _, height, width = noise.shape
            guided = self.level.guided_steps(steps) if ids.shape[0] > images else 0
            kind = Kind(images, height, width, ids.shape[1], steps, guided)
            device = self.owner.unet.conv_in.weight.device
            replayed = device.type == "cuda" and cuda_graphs.replaying()
            self._check_parts(replayed)
            times, factors = self._tables(steps, guidance_scale, device)
            noise = noise.permute(0, 2, 3, 1).contiguous()
            inputs = Inputs(ids=ids, noise=noise, factors=factors, times=times)
            if replayed:
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
            self.solvers[steps] = solver_for(self.owner.scheduler, steps)
        return self.solvers[steps]

    def _replay_checked(self, inputs: Inputs, kind: Kind) -> Tensor:
        """Look at the modules while the GPU draws, milliseconds that nobody waits for.

        A graph of other weights has drawn for nothing then; the watch keeps what it read.
        """
        if kind not in self.graphs:
            self._forget_what_changed()
            return self._replay(inputs, kind)
        picture = self._replay(inputs, kind)
        if not self._parts.has_changed() and not self._wrote_unseen(self.graphs[kind]):
            return picture
        return self._replay(inputs, kind) if self._forget_what_changed() else picture

    def _wrote_unseen(self, captured: Captured) -> bool:
        """Whether weights had other values when a graph began, long before its end."""
        if not self._parts.fingerprints:
            return False
        captured.looked.synchronize()
        if captured.flag.item() == UNKNOWN:
            torch.cuda.current_stream().synchronize()
        return bool(captured.flag.item())

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
        captured.flag.fill_(UNKNOWN)
        captured.graph.replay()
        self.ticks, self.latents = captured.ticks, captured.latents
        picture = captured.picture.clone()
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record()
        return picture

    def _forget_what_changed(self) -> bool:
        """Drop all graphs if the modules or the weights that they read are others now.

        Raises SdoptError for what graphs and kernels would leave out.
        """
        self._parts.refresh()
        changed = self._version != self._parts.version
        if changed:
            self._drop_graphs()
            self._version = self._parts.version
        return changed

    def _drop_graphs(self) -> None:
        if self.graphs:
            torch.cuda.synchronize()  # one of them may still draw
        self.graphs.clear()
        self._pool = None  # it ended with the last of its graphs

    def _check_parts(self, replayed: bool) -> None:
        """Raise SdoptError if a part of the pipeline is another one now; see the scheduler's."""
        parts = parts_of(self.owner)
        for (name, now), then in zip(parts.items(), self._built_of, strict=True):
            if now is not then():
                raise SdoptError(
                    f"level {self.level.name!r}: a part of the pipeline was replaced after it was "
                    f"built, its {name}; replace parts in the source's folder and load the level "
                    f"again, or {OTHER_LEVEL}"
                )
        scheduler = self.owner.scheduler
        if cuda_graphs.replaying():  # else somebody watches what is called, and all of it is
            self._roots.check(replayed=replayed)
            check_unpatched(scheduler)
        if (scheduled := settings_of(scheduler)) != self._scheduled:
            self._drop_graphs()
            self.solvers.clear()
            self._tables_of = None
            self._scheduled = scheduled

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
            flag = torch.zeros((), dtype=torch.uint8, pin_memory=True)
            looked: Any = torch.cuda.Event(external=True)  # type: ignore[no-untyped-call]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                if self._parts.fingerprints:
                    differs = differing(self._parts.fingerprints).to(torch.uint8)
                    flag.copy_(differs, non_blocking=True)
                looked.record()
                picture = self._run(static, kind, ticks)
        return Captured(
            graph=graph,
            inputs=static,
            picture=picture,
            latents=self.latents,
            ticks=ticks,
            factors=inputs.factors,
            flag=flag,
            looked=looked,
        )

    def _run(self, inputs: Inputs, kind: Kind, ticks: Sequence[Tick]) -> Tensor:
        """Draw without a graph, or while one records; what changed was taken over before."""
        self._parts.looked_at = True
        try:
            return self._drawn(inputs, kind, ticks)
        finally:
            self._parts.looked_at = False

    def _drawn(self, inputs: Inputs, kind: Kind, ticks: Sequence[Tick]) -> Tensor:
        marks = iter(ticks)
        _tick(marks)
        text = self.owner.text_encoder(inputs.ids)[0]
        _tick(marks)
        sample = self._denoise(inputs, kind, text)
        _tick(marks)
        vae = self.owner.vae
        self.latents = self._as_module_input((sample / vae.config.scaling_factor).to(text.dtype))
        picture: Tensor = vae.decode(self.latents, return_dict=False)[0]
        _tick(marks)
        return picture

    def _denoise(self, inputs: Inputs, kind: Kind, text: Tensor) -> Tensor:
        """The loop over all steps; latents (B, H, W, 4), float32."""
        sample: Tensor = inputs.noise.float() * self.owner.scheduler.init_noise_sigma
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
        noise, *stored = self.owner.unet(
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
        fused = self.owner.fused_unet
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
