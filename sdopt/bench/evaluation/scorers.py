"""What computes scores beside a GPU: processes, since Python's lock makes threads take turns.

An image's attributes are judged by some fifty drawings, 30 ms of a core, most of it Python. Sixteen
threads would do no more of it than one, and delay the thread that launches the GPU's work.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from threading import Thread

from sdopt.bench.evaluation.pixels import Image, from_png, to_png
from sdopt.bench.evaluation.scores import plain_scores
from sdopt.errors import BrokenFileError, WorkerError
from sdopt.miniature.scenes import Scene


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Processor time of one image. `cpu_s` is that of a process of its own, with its transfer."""

    png_s: float
    score_s: float
    cpu_s: float = 0.0


Seen = tuple[bytes, Mapping[str, float], Spent]
"""An image as PNG, its scores, and what they took."""
See = Callable[[Image, Scene | None, bytes | None], Seen]
"""Of an image, its scene if that is known, and the reference's PNG if there is one."""


def see(image: Image, scene: Scene | None, reference: bytes | None) -> Seen:
    """In this process."""
    began = time.thread_time()
    png = to_png(image)
    encoded = time.thread_time()
    other = None if reference is None else from_png(reference)
    if other is not None and other.shape != image.shape:
        raise BrokenFileError(f"its PNG is of shape {other.shape}, not {image.shape}")
    scores = plain_scores(image, scene, other)
    spent = Spent(png_s=encoded - began, score_s=time.thread_time() - encoded)
    return png, scores, spent


_told_s = 0.0
"""Processor time of this process that was told already."""


def _see_here(image: Image, scene: Scene | None, reference: bytes | None) -> Seen:
    """In a process of its own, whose time since the image before is this one's."""
    global _told_s
    png, scores, spent = see(image, scene, reference)
    before, _told_s = _told_s, time.process_time()
    return png, scores, replace(spent, cpu_s=_told_s - before)


@contextmanager
def processes(number: int) -> Iterator[See]:
    """`see` by that many processes, forked from one that has imported what they need.

    They end with this process, however that ends.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(number, mp_context=context, initializer=_begin) as pool:
        # The imports take seconds: they run beside the first image.
        Thread(target=_warm, args=(pool,), daemon=True).start()

        def elsewhere(image: Image, scene: Scene | None, reference: bytes | None) -> Seen:
            try:
                return pool.submit(_see_here, image, scene, reference).result()
            except BrokenProcessPool as error:
                raise WorkerError(
                    "a process that computes scores was ended, by want of memory perhaps; run the "
                    "same command again: it goes on where it stopped"
                ) from error

        yield elsewhere


def _warm(pool: ProcessPoolExecutor) -> None:
    with suppress(BrokenProcessPool, RuntimeError):  # who needs a score is told
        pool.submit(int).result()


def _begin() -> None:
    """One core, no word at Ctrl-C, and no life of its own."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
