"""A whole image as one CUDA graph: text encoder, denoising loop and decoder.

The host tokenizes, draws the noise and launches once. Everything that a graph depends on is its
key; another prompt, seed or guidance scale only changes what it reads.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable, Sequence
from dataclasses import InitVar, dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sdopt.engine import cuda_graphs, dependent, ops
from sdopt.engine.adapters import scaled_adapters
from sdopt.engine.captured import UNKNOWN, Captured, Inputs, Kind
from sdopt.engine.cards import card_of
from sdopt.engine.cuda_graphs import GraphCache
from sdopt.engine.fingerprint import differing
from sdopt.engine.modules import OTHER_LEVEL, Fused
from sdopt.engine.parts import GraphParts, Roots, parts_of
from sdopt.engine.predictor import FusedPredictor, ModulePredictor, Predictor, as_module_input
from sdopt.engine.solver import SolverTables, check_unpatched, settings_of
from sdopt.engine.stages import STAGES, HostTick, Tick, external_events, tick
from sdopt.errors import SdoptError
from sdopt.levels import Level

MOST_GRAPHS = 4
"""Kinds of images whose graphs are kept: sizes, numbers of steps or of images."""

_one_at_a_time = threading.RLock()
"""Graphs share their inputs, outputs and memory: a second thread waits for the first."""


@dataclass(kw_only=True)
class ImageEngine:
    """Generates the images of one pipeline; `captures` counts the graphs that it made.

    `latents` are what the decoder got for the last image, (B, 4, H, W), until the next one.
    The pipeline has the engine, and so is not kept alive by it.
    """

    pipeline: InitVar[Any]
    level: Level
    captures: int = 0
    steps_run: int = 0
    graphs: GraphCache[Captured] = field(default_factory=lambda: GraphCache(MOST_GRAPHS))
    schedule: SolverTables = field(default_factory=SolverTables)
    ticks: Sequence[Tick] = ()
    latents: Tensor = field(default_factory=lambda: torch.empty(0))
    _owner: Any = field(init=False)
    _built_of: tuple[Any, ...] = field(init=False)
    _parts: Fused | GraphParts = field(init=False)
    _roots: Roots = field(init=False)
    _version: Hashable = None
    _scheduled: Hashable = None
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

    def generate(
        self,
        ids: Tensor,
        noise: Tensor,
        guidance_scale: float,
        steps: int,
        adapter_scale: float = 1.0,
    ) -> Tensor:
        """Images (B, 3, 8 * H, 8 * W) from -1 to 1, the caller's to keep.

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
            times, factors = self.schedule.on(device, self.owner.scheduler, steps, guidance_scale)
            noise = noise.permute(0, 2, 3, 1).contiguous()
            inputs = Inputs(ids=ids, noise=noise, factors=factors, times=times)
            if replayed:
                return self._replay_checked(inputs, kind)
            self._forget_what_changed()
            self.ticks = [HostTick() for _ in range(len(STAGES) + 1)]
            return self._run(inputs.on(device), kind, self.ticks)

    def stage_ms(self) -> dict[str, float]:
        """The last image's time in each of STAGES, by the device's clock."""
        if not self.ticks:
            raise RuntimeError("no image was generated yet")
        self.ticks[-1].synchronize()
        pairs = zip(STAGES, pairwise(self.ticks), strict=True)
        return {stage: begin.elapsed_time(end) for stage, (begin, end) in pairs}

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """The timesteps and factors that the last image was generated with, on the device."""
        return self.schedule.last

    def _replay_checked(self, inputs: Inputs, kind: Kind) -> Tensor:
        """Look at the modules while the GPU generates, milliseconds that nobody waits for.

        A graph of other weights has generated for nothing then; the watch keeps what it read.
        Where somebody else took a change over, nothing keeps it: another engine of these modules.
        """
        if kind not in self.graphs or self._version != self._parts.version:
            self._forget_what_changed()
            return self._replay(inputs, kind)
        image = self._replay(inputs, kind)
        if not self._parts.has_changed() and not self._wrote_unseen(self.graphs.kept[kind]):
            return image
        return self._replay(inputs, kind) if self._forget_what_changed() else image

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
        captured = self.graphs.get(kind, lambda: self._capture(inputs, kind))
        captured.read(inputs)
        captured.flag.fill_(UNKNOWN)
        captured.graph.replay()
        self.ticks, self.latents = captured.ticks, captured.latents
        image = captured.image.clone()
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record()
        return image

    def _forget_what_changed(self) -> bool:
        """Drop all graphs if the modules or the weights that they read are others now.

        Raises SdoptError for what graphs and kernels would leave out.
        """
        self._parts.refresh()
        changed = self._version != self._parts.version
        if changed:
            self.graphs.forget()
            self._version = self._parts.version
        return changed

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
            self.graphs.forget()
            self.schedule.forget()
            self._scheduled = scheduled

    def _capture(self, inputs: Inputs, kind: Kind) -> Captured:
        device = inputs.factors.device
        static = inputs.on(device)
        pool = self.graphs.pool()
        self.captures += 1
        with cuda_graphs.eager_calls(), dependent.launches(card_of(device).dependent):
            with cuda_graphs.warm_up_stream():
                self._run(static, kind, [])
            torch.cuda.synchronize()
            ticks = external_events()
            flag = torch.zeros((), dtype=torch.uint8, pin_memory=True)
            looked: Any = torch.cuda.Event(external=True)  # type: ignore[no-untyped-call]
            graph = torch.cuda.CUDAGraph()

            def look() -> None:
                if self._parts.fingerprints:
                    differs = differing(self._parts.fingerprints).to(torch.uint8)
                    flag.copy_(differs, non_blocking=True)
                looked.record()

            with (
                cuda_graphs.capturing(graph, pool, capture_error_mode="thread_local"),
                cuda_graphs.beside(look),
            ):
                image = self._run(static, kind, ticks)
        return Captured(
            graph=graph,
            inputs=static,
            image=image,
            latents=self.latents,
            ticks=ticks,
            factors=inputs.factors,
            flag=flag,
            looked=looked,
        )

    def _run(self, inputs: Inputs, kind: Kind, ticks: Sequence[Tick]) -> Tensor:
        """Generate without a graph, or while one records; what changed was taken over before."""
        self._parts.looked_at = True
        try:
            return self._generated(inputs, kind, ticks)
        finally:
            self._parts.looked_at = False

    def _generated(self, inputs: Inputs, kind: Kind, ticks: Sequence[Tick]) -> Tensor:
        marks = iter(ticks)
        tick(marks)
        text = self.owner.text_encoder(inputs.ids)[0]
        tick(marks)
        sample = self._denoise(inputs, kind, text)
        tick(marks)
        vae = self.owner.vae
        self.latents = as_module_input(
            (sample / vae.config.scaling_factor).to(text.dtype), fused=self.level.fused
        )
        image: Tensor = vae.decode(self.latents, return_dict=False)[0]
        tick(marks)
        return image

    def _denoise(self, inputs: Inputs, kind: Kind, text: Tensor) -> Tensor:
        """The loop over all steps; latents (B, H, W, 4), float32."""
        sample: Tensor = inputs.noise.float() * self.owner.scheduler.init_noise_sigma
        before = torch.zeros_like(sample)
        copies = 2 if kind.guided_steps else 1
        x = torch.cat([sample.to(text.dtype)] * copies)
        predictor = self._predictor(inputs.times, text, kind)
        for step in range(kind.steps):
            if step >= kind.guided_steps:
                predictor.drop_unconditional(kind.images)
            noise = predictor.predict(x, step)
            copies = 2 if step + 1 < kind.guided_steps else 1
            x = ops.solver_step(noise, sample, before, inputs.factors[step], copies)
            self.steps_run += 1
        return sample

    def _predictor(self, times: Tensor, text: Tensor, kind: Kind) -> Predictor:
        level = self.level
        if not level.fused:
            return ModulePredictor(self.owner.unet, times, text)
        reusing = level.feature_cache
        return FusedPredictor(
            self.owner.unet,
            times,
            text,
            images=kind.images,
            fused=self.owner.fused_unet if level.hoisted else None,
            full=set(level.full_steps(kind.steps, kind.guided_steps)) if reusing else None,
        )
