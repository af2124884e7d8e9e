"""Kernels compiled by processes beside this one, and their machine code checked, without a GPU."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from math import inf
from typing import Any

from sdopt.engine import dependent, proof
from sdopt.engine.cards import Card
from sdopt.engine.tiles import Tile
from sdopt.errors import MissingToolError, SdoptError
from sdopt.tuning.jobs import Job, computed, empty_operands, uses_of

FORK = multiprocessing.get_context("fork")
MOST_SPILLED = 32
"""Bytes a thread of a tile by rule, which nobody measured: 8 registers of 255."""
PRODUCTS = ("sdopt_convolution", "sdopt_matrix_product")
WIDE = frozenset({16})
"""Bytes of each asynchronous copy of a product, the most that one has."""

Compiled = tuple[str, list[proof.Resources]]
Make = tuple[Any, ...]
Verdicts = Mapping[Make, str]
"""Why a kernel cannot be used, '' if it can."""


def make_of(job: Job, tile: Tile) -> Make:
    """What tells one kernel from others: the rest of a tile it is given when launched."""
    fields = {**asdict(tile), "splits": tile.splits > 1}
    if tile.splits > 1 and job.kind != "attention":  # ended by another kernel
        ends: tuple[Any, ...] = (job.kind == "joined",)
    else:
        ends = (tuple(s is None for s in job.shapes), job.relu, job.causal)
    made_for: Any = job.key if job.kind == "attention" else job.columns % 16 == 0
    if tile.stationary:  # compiled for the whole length of the sum
        made_for = job.first_two[1][-1]
    kind = job.kind.replace("added", "linear")
    return kind, job.float8, ends, made_for, tuple(fields.items())


def distinct(work: Iterable[tuple[Job, Sequence[Tile]]]) -> dict[Make, tuple[Job, Tile]]:
    """Each kernel once, with the first operation that launches it."""
    found: dict[Make, tuple[Job, Tile]] = {}
    for job, tiles in work:
        for tile in tiles:
            found.setdefault(make_of(job, tile), (job, tile))
    return found


def shares_of(tile: Tile) -> tuple[Tile, ...]:
    """The tile, and what larger batches make of it: without splits it is another kernel."""
    return (tile,) if tile.splits == 1 else (tile, replace(tile, splits=1))


def uses(job: Job, tile: Tile) -> Iterator[tuple[Job, Tile]]:
    """Everything that launches with this tile if it is stored for this operation."""
    for use in uses_of(job):
        for share in shares_of(tile):
            yield use, share


def verdict(job: Job, tile: Tile, card: Card) -> str:
    """Compile what a launch would; why it cannot be used, '' if it can."""
    return compiled(job, tile, card)[0]


def compiled(job: Job, tile: Tile, card: Card) -> Compiled:
    """The verdict of a tile, and what its kernels take.

    An error, a race in machine code, or more of the card than there is, or than is fast.
    """
    from triton.errors import TritonError

    try:
        with (
            dependent.launches(card.dependent),  # as in an image
            proof.only_compiled(card.capability) as kernels,
        ):
            computed(job, empty_operands(job), tile)
    except (TritonError, RuntimeError, ValueError, AssertionError) as error:  # of passes and boxes
        return f"does not compile: {' '.join(str(error).split())[:200]}", []
    taken = [*map(proof.resources, kernels)]
    try:
        found = [str(hazard) for kernel in kernels for hazard in proof.hazards(kernel)]
    except MissingToolError:
        raise
    except ValueError as error:
        return f"cannot be followed: {error}", taken
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (f"races: {found[0]}{more}" if found else unfit(taken, card)), taken


def spills(kernels: Sequence[proof.Resources]) -> str:
    """Why compiled kernels are slow whoever measures them; '' if their sums stay in registers."""
    most = max((one.spilled_bytes for one in kernels), default=0)
    return f"spills: {most} bytes a thread" if most > MOST_SPILLED else ""


def unfit(kernels: Sequence[proof.Resources], card: Card) -> str:
    """Why compiled kernels do not run well on a card, or not at all; '' if they do."""
    for one in kernels:
        if one.shared_bytes > card.shared_bytes:
            return f"too large: {one.shared_bytes} bytes of shared memory of {card.shared_bytes}"
        if card.pointers and one.kernel in PRODUCTS and one.copies != WIDE:
            return f"narrow: asynchronous copies of {sorted(one.copies) or 'no'} bytes, not 16"
    return ""


def _begun() -> None:
    """The first task: with it a pool of forks starts all of its processes."""


def _end_with(parent: int) -> None:
    """In a process of the pool: end when the one that it works for has ended, however it did."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Compilers:
    """Processes that compile; begin before this one touches the device, since they are forks."""

    def __init__(self, processes: int, card: Card) -> None:
        self.card, self._processes = card, processes
        self.verdicts: dict[Make, str] = {}
        self.taken: dict[Make, list[proof.Resources]] = {}
        self._pool = ProcessPoolExecutor(
            processes, mp_context=FORK, initializer=_end_with, initargs=(os.getpid(),)
        )

    def __enter__(self) -> Compilers:
        self._pool.submit(_begun).result()
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def check(
        self,
        work: Iterable[tuple[Job, Sequence[Tile]]],
        advance: Callable[[], None] = lambda: None,
        until: float = inf,
    ) -> Verdicts:
        """The verdict of each kernel; of those that are known already, that one.

        `advance` is called after each that was compiled. None is given to a process when
        time.monotonic() is `until`: those under way are waited for, the others left out. Raises
        SdoptError if a process that compiles ends by itself.
        """
        unknown = (
            (make, operation)
            for make, operation in distinct(work).items()
            if make not in self.verdicts
        )
        answers: dict[Make, Future[Compiled]] = {}
        left: set[Future[Compiled]] = set()
        try:
            while True:
                while (
                    len(left) <= self._processes  # one more, for who ends first
                    and time.monotonic() < until
                    and (one := next(unknown, None))
                ):
                    make, operation = one
                    answers[make] = self._pool.submit(compiled, *operation, self.card)
                    left.add(answers[make])
                if not left:
                    break
                done, left = wait(left, return_when=FIRST_COMPLETED)
                for answer in done:
                    answer.result()
                    advance()
            for make, answer in answers.items():  # in the order of the work, whoever ended first
                self.verdicts[make], self.taken[make] = answer.result()
        except BrokenProcessPool as error:
            raise SdoptError(
                f"a process that compiled kernels for {self.card} ended by itself, out of memory "
                "or in the compiler (see above); try again with --processes 1"
            ) from error
        return self.verdicts

    def knows(self, job: Job, tiles: Iterable[Tile]) -> bool:
        """Whether there is a verdict of every kernel of these tiles."""
        return all(make_of(job, tile) in self.verdicts for tile in tiles)

    def of(self, job: Job, tile: Tile) -> str:
        """Why this tile must not be stored for this operation, in any of its uses; '' if it may."""
        together = list(uses(job, tile))
        verdicts = self.check((use, [share]) for use, share in together)
        reasons = (verdicts[make_of(use, share)] for use, share in together)
        return next((reason for reason in reasons if reason), "")
