"""What one process does: its parts of each level, generated in batches and scored beside that."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdopt.bench.evaluation.parts import Made, Scored, of_image, part_file, read_rows, write_part
from sdopt.bench.evaluation.pixels import Image
from sdopt.bench.evaluation.places import Place
from sdopt.bench.evaluation.plan import Evaluation
from sdopt.bench.evaluation.scorers import See, Spent, processes, see
from sdopt.bench.evaluation.scores import PAIRED, finite, learned_scores, scene_of
from sdopt.bench.evaluation.statistics import differences
from sdopt.bench.measure.quality import image_fault, to_uint8
from sdopt.errors import OutOfMemoryError
from sdopt.levels import Level
from sdopt.pipelines.workload import Request, generate_batch
from sdopt.weights.sources import Source

if TYPE_CHECKING:
    import torch

Generate = Callable[[Sequence[Request]], NDArray[np.float32]]
"""The images of requests, (n, height, width, 3), 0 to 1."""
Build = Callable[[Level], AbstractContextManager[Generate]]
"""A level's pipeline, and its memory given back afterwards."""
Found = tuple[Scored, Spent]
"""A result, and the processor time of it."""
Score = Callable[[int, NDArray[np.float32], Scored | None], Future[Found]]
"""Of a prompt's index, its image, and the reference's result if it has to be compared."""
MOST_BATCH = {"cuda": 8, "cpu": 4}
MOST_WAITING = 2
"""Parts that are generated and not yet scored."""


@contextmanager
def pipeline_of(source: Source, device: torch.device, level: Level) -> Iterator[Generate]:
    """The images of a level, until it is left."""
    from sdopt.pipelines.engine_call import token_ids
    from sdopt.pipelines.pipeline import build
    from sdopt.util.hardware import free_memory

    pipeline = build(source, level, device)

    def generate(requests: Sequence[Request]) -> NDArray[np.float32]:
        images = generate_batch(pipeline, requests)
        if pipeline.engine is None:  # which says itself which are too long
            texts = ([one.negative_prompt, one.prompt] for one in requests)
            token_ids(pipeline, [text for both in texts for text in both])
        return images

    try:
        yield generate
    finally:
        pipeline.__dict__.clear()
        free_memory(device)


class Batches:
    """A level's images in batches that fit: one that does not is halved, and it stays so.

    Each batch is filled up with its last prompt: another size would be compiled anew.
    """

    def __init__(self, build: Build, level: Level, most: int, say: Callable[[str], None]) -> None:
        self.build, self.level, self.size, self.say = build, level, most, say
        self.stack = ExitStack()
        self.generate: Generate | None = None

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: Any) -> None:
        self._free()

    def images(self, requests: Sequence[Request]) -> list[NDArray[np.float32]]:
        """One image a request. Raises OutOfMemoryError if a single one does not fit."""
        done: list[NDArray[np.float32]] = []
        while len(done) < len(requests):
            batch = list(requests[len(done) : len(done) + self.size])
            filled = batch + batch[-1:] * (self.size - len(batch))
            try:
                made = self._generate(filled)
            except OutOfMemoryError:
                if self.size == 1:
                    raise
                self._halve()
                continue
            done += list(made[: len(batch)])
        return done

    def _generate(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        if self.generate is None:
            self.generate = self.stack.enter_context(self.build(self.level))
        return self.generate(requests)

    def _halve(self) -> None:
        """What was captured for the larger batch goes with the pipeline."""
        self._free()
        self.size //= 2
        self.say(f"{self.level.name}: out of memory, going on in batches of {self.size}")

    def _free(self) -> None:
        self.generate = None
        self.stack.close()


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One process's tools. `session` names this start of all of them.

    `threads` score; beside a GPU each has a process for it.
    """

    evaluation: Evaluation
    place: Place
    build: Build
    session: str
    process: int
    device: str
    threads: int
    say: Callable[[str], None]
    progress: Callable[[], None]
    made_with: Mapping[str, Mapping[str, Any]]
    """By level, what its parts say that they were made with."""

    def work(self, missing: dict[str, list[int]], ours: Sequence[int], batch: int) -> None:
        """Make the missing parts of our blocks, level after level: the reference comes first."""
        from sdopt.bench.evaluation.truncation import truncation_told_once

        seeing = processes(self.threads) if self.device == "cuda" else nullcontext(see)
        with seeing as by, ThreadPoolExecutor(self.threads) as threads:

            def score(
                index: int, image: NDArray[np.float32], other: Scored | None
            ) -> Future[Found]:
                return threads.submit(self._score, by, index, image, other)

            for level in self.evaluation.all_levels():
                lacking = set(missing[level.name])
                blocks = [block for block in ours if block in lacking]
                if blocks:
                    if not self.process:  # of all that begin it one says so
                        slow = ", then compiling for its first images" if level.compiled else ""
                        self.say(f"{level.name}: loading{slow}")
                    most = min(batch, self.evaluation.part)
                    with (
                        truncation_told_once(level.name),
                        Batches(self.build, level, most, self.say) as batches,
                    ):
                        self._level(level, blocks, batches, score)

    def _level(self, level: Level, blocks: Sequence[int], batches: Batches, score: Score) -> None:
        waiting: deque[tuple[int, Made, list[Future[Found]]]] = deque()
        told_s, write_s = time.process_time(), 0.0
        for block in blocks:
            requests = self._requests(block)
            start = time.perf_counter()
            images = batches.images(requests)
            before, told_s = told_s, time.process_time()
            made = Made(
                session=self.session,
                process=self.process,
                batch=batches.size,
                generated_unix_s=time.time(),
                generate_s=time.perf_counter() - start,
                cpu_s=told_s - before,
            )
            waiting.append((block, made, self._scored(level, block, images, score)))
            while len(waiting) > MOST_WAITING:
                write_s = self._store(level, write_s, *waiting.popleft())
        while waiting:
            write_s = self._store(level, write_s, *waiting.popleft())

    def _requests(self, block: int) -> list[Request]:
        texts = self.evaluation.prompts.texts
        return [
            Request(name=str(index), prompt=texts[index], seed=index)
            for index in self.evaluation.indices(block)
        ]

    def _scored(
        self, level: Level, block: int, images: Sequence[NDArray[np.float32]], score: Score
    ) -> list[Future[Found]]:
        reference = self.evaluation.reference
        others: list[Scored | None] = [None] * len(images)
        if level.name != reference.name:
            others = [*read_rows(self.place, part_file(reference.name, block))]
        pairs = zip(self.evaluation.indices(block), images, others, strict=True)
        return [score(index, image, other) for index, image, other in pairs]

    def _score(
        self, by: See, index: int, image: NDArray[np.float32], other: Scored | None
    ) -> Found:
        prompt = self.evaluation.prompts.texts[index]
        fault = image_fault(image) or ""
        pixels: Image = to_uint8(np.nan_to_num(image))
        scene = None if fault else scene_of(self.evaluation.source, prompt)
        sound = None if fault or other is None or other.fault else other
        block = index // self.evaluation.part
        with of_image(self.place, part_file(self.evaluation.reference.name, block), index):
            png, plain, spent = by(pixels, scene, sound.png if sound else None)
            scores = dict(plain)
            if not fault:
                scores |= learned_scores(pixels, prompt, sound.png if sound else None)
        if sound:
            scores |= differences(scores, finite(sound.scores), PAIRED)
        scored = Scored(index=index, prompt=prompt, fault=fault, png=png, scores=scores)
        return scored, spent

    def _store(
        self,
        level: Level,
        before_s: float,
        block: int,
        made: Made,
        rows: list[Future[Found]],
    ) -> float:
        """The time in which it was written, as `before_s` of the next one."""
        scored, spent = zip(*(row.result() for row in rows), strict=True)
        made = replace(
            made,
            scorers_cpu_s=sum(one.cpu_s for one in spent),
            png_s=sum(one.png_s for one in spent),
            score_s=sum(one.score_s for one in spent),
            write_s=before_s,
        )
        start = time.perf_counter()
        file, made_with = part_file(level.name, block), self.made_with[level.name]
        write_part(self.place, file, scored, made, made_with)
        written_s = time.perf_counter() - start
        self.progress()
        return written_s
