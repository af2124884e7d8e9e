"""A level's pipeline as a worker uses it: the device rounds pixels, and sends them by itself."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

import sdopt
from sdopt.engine import cuda_graphs
from sdopt.pipelines.engine_request import MULTIPLE_PX
from sdopt.pipelines.noise import portable_noise
from sdopt.service.logs import log
from sdopt.service.queueing import Kind
from sdopt.service.settings import Facts, Shape

if TYPE_CHECKING:
    from sdopt.pipelines.pipeline import LevelPipeline
    from sdopt.service.worker import Finish, Pixels, Wanted

ANY_MULTIPLE_PX = 8
"""Of levels without the engine: a latent is so many pixels."""
MOST_GRAPHS = 64
"""Kept of a compiled module: of each size and number of images, with guidance and without."""
WARM_CALLS = 2
"""Of each batch: the first one captures, the second one is timed."""
PROMPT = "a red star"
"""That every source can generate, the embedded one too."""


def load(level: str, source: str, device: str | None) -> PipelineGenerator:
    """The level's pipeline on that device; None is the first GPU, or the CPU."""
    cuda_graphs.MOST_GRAPHS = MOST_GRAPHS
    # They warn of a prompt that is too long by repeating it; prompts stay out of the log.
    logging.getLogger("sdopt.pipelines").setLevel(logging.ERROR)
    diffusers_logging.set_verbosity_error()
    return PipelineGenerator(sdopt.load_pipeline(level, source=source, device=device))


class PipelineGenerator:
    """Generates with one pipeline, and what was not made ready with a twin of it.

    The twin has graphs of its own: strange sizes never drive out those that are ready.
    """

    def __init__(self, pipeline: LevelPipeline) -> None:
        self.pipeline = pipeline
        self.ready: set[tuple[int, int, int]] = set()
        self.cold: LevelPipeline | None = None
        self.facts = self._facts()

    def _facts(self) -> Facts:
        """Of the level and the source."""
        pipeline, level, source = self.pipeline, self.pipeline.level, self.pipeline.source
        on_gpu = pipeline.device.type == "cuda"
        return Facts(
            source=source.name,
            embedded=source.is_embedded,
            size_px=source.size_px,
            guidance_scale=source.guidance_scale,
            steps=level.steps,
            multiple_px=MULTIPLE_PX if level.whole_graph else ANY_MULTIPLE_PX,
            compiles=level.compiled or (on_gpu and (level.whole_graph or level.fused)),
            device=torch.cuda.get_device_name(pipeline.device) if on_gpu else "cpu",
        )

    def warm(self, shapes: Sequence[Shape], max_batch: int, memory: Pixels) -> float:
        """Compile and capture each shape at each number of images."""
        _pin(memory, self.pipeline.device)
        engine = self.pipeline.engine
        if engine is not None:
            engine.graphs = cuda_graphs.GraphCache(max(engine.graphs.most, len(shapes) * max_batch))
        rate = 0.0
        for shape in shapes if self.facts.compiles else shapes[:1]:
            for images in range(1, max_batch + 1):
                seconds = self._timed(shape, images)
                if shape == shapes[0]:
                    rate = images / seconds
        self.ready = {(shape.width, shape.height, shape.steps) for shape in shapes}
        return rate

    def begin(self, kind: Kind, wanted: Sequence[Wanted]) -> Finish:
        """Put a batch on the device; its pixels are copied as soon as they are there."""
        pipeline = self._pipeline_of(kind)
        with portable_noise():
            images: Tensor = pipeline(
                [one.prompt for one in wanted],
                negative_prompt=[one.negative_prompt for one in wanted],
                generator=[torch.Generator("cpu").manual_seed(one.seed) for one in wanted],
                width=kind.width,
                height=kind.height,
                num_inference_steps=kind.steps,
                guidance_scale=kind.guidance_scale,
                output_type="pt",
            ).images
        pixels = (images.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        sound = images.isfinite().flatten(1).all(1)
        for one, made in zip(wanted, pixels, strict=True):
            torch.from_numpy(one.pixels).copy_(made, non_blocking=True)
        if not sound.is_cuda:
            return sound.tolist
        flags = torch.empty(sound.shape, dtype=torch.bool, pin_memory=True)
        flags.copy_(sound, non_blocking=True)
        fetched: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        fetched.record()

        def finish() -> Sequence[bool]:
            fetched.synchronize()
            return flags.tolist()

        return finish

    def _pipeline_of(self, kind: Kind) -> LevelPipeline:
        is_ready = (kind.width, kind.height, kind.steps) in self.ready and kind.guidance_scale > 1
        if is_ready or not self.ready or not self.facts.compiles or not self.pipeline.engine:
            return self.pipeline
        if self.cold is None:
            self.cold = copy.copy(self.pipeline)
        return self.cold

    def _timed(self, shape: Shape, images: int) -> float:
        import numpy as np

        from sdopt.service.worker import Wanted

        kind = Kind(
            width=shape.width,
            height=shape.height,
            steps=shape.steps,
            guidance_scale=self.facts.guidance_scale,
        )
        wanted = [
            Wanted(
                prompt=PROMPT,
                negative_prompt="",
                seed=index,
                pixels=np.empty((shape.height, shape.width, 3), dtype=np.uint8),
            )
            for index in range(images)
        ]
        for _ in range(WARM_CALLS if self.facts.compiles else 1):
            begin = time.perf_counter()
            self.begin(kind, wanted)()
        return time.perf_counter() - begin


def _pin(memory: Pixels, device: torch.device) -> None:
    """Let the GPU write into shared memory by itself; where it may not, copies take longer."""
    if device.type == "cuda":
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        code = int(runtime.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0))
        if code != 0:
            log("shared memory is not pinned: copies take longer", logging.WARNING, code=code)
            with suppress(RuntimeError):  # CUDA tells of its last error again, at the next call
                torch.zeros(1, device=device)
