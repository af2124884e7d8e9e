"""Measure how each operation's work is best cut on this GPU, or prove it: `sdopt tune`.

Generates an image with the engine's levels to see which shapes there are, then times every sensible
tile and the library, weights cold in the cache as they are inside an image. Kernels are compiled
by processes beside this one, never while one is timed, and none whose machine code has a race. The
fastest tile is repeated 200 times, alone and beside other work, and stored in a table if all
bits agree and its error is like the library's; otherwise the next one is tried.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from sdopt.engine import cards
from sdopt.engine.cards import Card, card_of
from sdopt.engine.proof import Resources
from sdopt.engine.tables import own_table, reads_as, tuned, used_tables
from sdopt.engine.tiles import Tile
from sdopt.errors import BrokenFileError, SdoptError
from sdopt.tuning import chosen
from sdopt.tuning.candidates import candidates, near
from sdopt.tuning.choosing import tune
from sdopt.tuning.compiling import FORK, Compilers, distinct, make_of, spills, uses
from sdopt.tuning.jobs import Job, job_of_key, jobs_of_levels
from sdopt.tuning.repeats import prove
from sdopt.tuning.table import circumstances, read_table, store, tiles_of, write_table
from sdopt.util.progress import Progress
from sdopt.util.writing import writing

LEVELS = ("hoisted", "express")
TOGETHER = 8
"""Shapes that are stored together."""


def usual_processes() -> int:
    """How many compile beside this one."""
    return max(1, min(16, (os.cpu_count() or 2) - 1))


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is asked for: the levels whose shapes are measured, and the table `out`.

    Shapes are those of calls for so many `images`, in `sizes` (width and height; none is the
    source's own). Without `out` it is this user's own table of this card. A table is continued, and
    `anew` measures shapes again that it has. `missing` measures only shapes that the table lacks,
    `known` only the tiles in it; both, such shapes with the tiles that this card has for others of
    their kind, which is far quicker. `cards` are those that kernels are only compiled for.
    """

    levels: Sequence[str] = LEVELS
    source: str = "sd15-random"
    images: Sequence[int] = (1,)
    sizes: Sequence[tuple[int, int]] = ()
    seconds: float = 300.0
    processes: int
    missing: bool = False
    known: bool = False
    out: Path | None = None
    anew: bool = False
    cards: Sequence[str] = ("H100",)


def _tell_card(answer: Connection) -> None:
    """In a child: what the GPU is, None without one."""
    answer.send(card_of(torch.device("cuda")) if torch.cuda.is_available() else None)


def this_card() -> Card:
    """This machine's GPU; asked in a child, since CUDA does not survive a fork."""
    ours, theirs = FORK.Pipe()
    child = FORK.Process(target=_tell_card, args=(theirs,))
    child.start()
    theirs.close()
    try:
        card: Card | None = ours.recv()
    except EOFError:  # an error of CUDA's, which is on stderr
        card = None
    child.join()
    if card is None:
        raise SdoptError("tiles are measured on a CUDA device, and there is none; run it on one")
    return card


def tune_levels(options: Tuning) -> int:
    """Measure what was asked for and write the table as it grows; 0 when it is whole, else 1.

    Killed or out of time, it is continued by another run. Raises SdoptError without a GPU,
    BusyError while another one writes there.
    """
    until = time.monotonic() + options.seconds
    given = read_table(options.out) if options.out and (options.missing or options.known) else None
    card = this_card()
    out = options.out or own_table(card)
    with writing(out.parent, patience_s=0):
        return _tuned(options, card, out, given, until)


def _tuned(
    options: Tuning, card: Card, out: Path, given: dict[str, Any] | None, until: float
) -> int:
    before = given or _begun(out, options, card)
    own = {key: [tile] for key, tile in tiles_of(before).items() if not tile.library}

    def tiles_to_time(job: Job) -> list[Tile]:
        if options.known and not options.missing:
            return own[job.key]
        possible = candidates(job, card)
        if options.known:
            possible = near(job, {**tuned(card), **tiles_of(before)}, possible)
        now = chosen.used(job, card)  # else it could get a slower one
        return possible if now.library else list(dict.fromkeys([now, *possible]))

    def is_asked_for(job: Job) -> bool:
        if options.known and not options.missing:
            return job.key in own
        return job.key not in before["tiles"] or (options.anew and not options.missing)

    if options.known and not options.missing and not own:
        raise SdoptError(
            f"{out} has no tiles that could be timed anew; run `sdopt tune` first, or name a table "
            "with --out"
        )
    with Compilers(options.processes, card) as compilers:
        seen = jobs_of_levels(options.levels, options.source, options.images, options.sizes)
        jobs = sorted(filter(is_asked_for, seen), key=lambda job: -job.flop)
        print(f"{card}: {len(jobs)} shapes to measure, into {out}", flush=True)
        if not jobs:
            return 0
        stored = set[str]()
        for found in _found_in_time(jobs, until, tiles_to_time, compilers):
            before = write_table(out, before, found)
            stored |= set(found)
            print(f"{len(stored)} of {len(jobs)} shapes stored", flush=True)
    if waiting := {job.key for job in jobs} - stored:
        step = _next_step(options, bool(stored), bool(waiting & set(before["tiles"])))
        print(f"the time is over: {len(waiting)} shapes are left; {step}")
        return 1
    taken = "; pipelines of this user take it on this card from now on"
    print(f"{out} is whole{taken if out == own_table(card) else ''}")
    return 0


def _found_in_time(
    jobs: Sequence[Job],
    until: float,
    tiles_to_time: Callable[[Job], list[Tile]],
    compilers: Compilers,
) -> Iterator[dict[str, dict[str, Any]]]:
    """What `tune` found of a few shapes at a time, whose kernels are all compiled.

    Compiling has half of the time that is left, then what is ready is timed, and so on.
    """
    torch.backends.cudnn.benchmark = False  # as while the engine generates
    here, waiting = circumstances(), [*jobs]
    while waiting and (left_s := until - time.monotonic()) > 0:
        compilers.check(((job, tiles_to_time(job)) for job in waiting), until=until - left_s / 2)
        ready = [job for job in waiting if compilers.knows(job, tiles_to_time(job))]
        waiting = [job for job in waiting if job not in ready]
        for start in range(0, len(ready), TOGETHER):
            found = tune(ready[start : start + TOGETHER], until, tiles_to_time, compilers, here)
            if found:
                yield found


def _next_step(options: Tuning, any_stored: bool, have_tiles: bool) -> str:
    """How to measure the shapes that are left; they may have tiles from before."""
    if not any_stored:
        given = f"{options.seconds:g} s"
        return f"none was timed in {given}; what was compiled is kept: give more --seconds"
    if have_tiles:
        return "tiles of before stay; all are measured anew each time: give more --seconds"
    if options.missing or (options.out is None and not options.anew):
        return "run the same command again"
    return f"run it again with --missing{' instead of --force' * options.anew}"


def _begun(out: Path, options: Tuning, card: Card) -> dict[str, Any]:
    """What a table has already: it loses no shape that is not measured, whatever ends the search.

    A file of another card, or of no table, is begun anew if `out` names it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    if options.out is None:
        tuned(card)  # raises for a broken one, which no pipeline could use
    if not out.exists():
        return {"tiles": {}, "measured": {}}
    try:
        before = read_table(out)
        if options.out is None or before.get("device") == card.name:
            return before
        reason = f"it is of {before.get('device')}"
    except BrokenFileError as error:
        reason = str(error)
    print(f"nothing of {out} is kept: {reason}", flush=True)
    return {"tiles": {}, "measured": {}}


def check_machine_code(options: Tuning) -> int:
    """Compile all that can be chosen for some cards, without them; 1 if anything cannot be used.

    A table of what the kernels take comes last, a line for each card and kernel.
    """
    stored = read_table(options.out) if options.out else None
    if find_spec("triton") is None:
        raise SdoptError("kernels are compiled with Triton, and there is none; pip install triton")
    failed, rows, progress = 0, [], Progress(sys.stderr)
    for name in options.cards:
        card = cards.KNOWN[name]
        all_tiles = tiles_of(stored) if stored else tuned(card)
        tiles = {key: tile for key, tile in all_tiles.items() if taken_by(card, key, tile)}
        if others := len(all_tiles) - len(tiles):
            print(f"{name}: {others} of {len(all_tiles)} tiles are of another kind of card")
        ruled = chosen.together(chosen.by_rule(card))
        work = chosen.together([*chosen.stored(tiles), *_pairs(ruled)])
        with (
            Compilers(options.processes, card) as compilers,
            progress.during(f"[{name}] kernels compiled", len(distinct(work))) as advance,
        ):
            compilers.check(work, advance)
        makes = [make_of(job, tile) for job, tile in _pairs(work)]
        reasons = {make: compilers.verdicts[make] for make in makes}
        for job, tile in _pairs(ruled):
            make = make_of(job, tile)
            reasons[make] = reasons[make] or spills(compilers.taken[make])
        for job, tile in _pairs(work):
            if reason := reasons[make_of(job, tile)]:
                print(f"{name}: {job.key}: {tile} {reason}")
        counts = Counter(why.split(":")[0] or "clear" for why in reasons.values())
        told = ", ".join(f"{count} kernels: {what}" for what, count in sorted(counts.items()))
        print(f"{name}: {told}", flush=True)
        failed += set(counts) > {"clear"} or "clear" not in counts
        taken = (one for some in compilers.taken.values() for one in some)
        rows += [(f"{name} ({card.family})", one) for one in taken]
    print("\n".join(matrix(rows)))
    return 1 if failed else 0


def taken_by(card: Card, key: str, tile: Tile) -> bool:
    """Whether kernels of such a tile run on the card, as far as its kind decides that."""
    return reads_as(key, tile, card.pointers) and (card.specialized or not tile.specialized)


def _pairs(work: Iterable[tuple[Job, Sequence[Tile]]]) -> Iterator[tuple[Job, Tile]]:
    return ((job, tile) for job, tiles in work for tile in tiles)


def matrix(taken: Sequence[tuple[str, Resources]]) -> list[str]:
    """A Markdown table of what compiled kernels take, (card, resources) each; a line for each kind.

    Sums that end split products, and their like, are not cut by tiles and left out.
    """
    lines = [
        "| card | kernel | variants | registers | spilled, bytes | shared memory, KiB | copies |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for card, kernel in dict.fromkeys((card, one.kernel) for card, one in taken):
        some = [one for name, one in taken if (name, one.kernel) == (card, kernel)]
        if not any(one.shared_bytes for one in some):
            continue
        sizes = sorted({size for one in some for size in one.copies})
        copies = f"cp.async, {', '.join(map(str, sizes))} bytes" if sizes else "descriptors"
        lines.append(
            f"| {card} | `{kernel}` | {len(some)} | {max(one.registers for one in some)} "
            f"| {max(one.spilled_bytes for one in some)} "
            f"| {max(one.shared_bytes for one in some) / 1024:.0f} | {copies} |"
        )
    return lines


def prove_stored(options: Tuning) -> int:
    """Check and repeat every tile that is used on this GPU, or of `out`; 1 if one fails, by name.

    How it went is stored in the table that has the tile. Raises SdoptError without a GPU or a
    table, BusyError while another one writes there.
    """
    given = options.out and read_table(options.out)
    card = this_card()
    paths = [options.out] if options.out else used_tables(card)
    if not paths:
        raise SdoptError(f"{card} has no table of tiles to prove; run `sdopt tune` first")
    failed, proved = 0, set[str]()
    with Compilers(options.processes, card) as compilers:  # for all, before the device is used
        for path in paths:
            with writing(path.parent, patience_s=0):
                table = given or read_table(path)
                jobs = {
                    job_of_key(key): tile
                    for key, tile in tiles_of(table).items()
                    if not tile.library and taken_by(card, key, tile) and key not in proved
                }
                failed += _proved(compilers, path, table, jobs)
                proved |= set(tiles_of(table))
    return 1 if failed else 0


def _proved(
    compilers: Compilers, out: Path, table: dict[str, Any], jobs: Mapping[Job, Tile]
) -> int:
    """How many of a table's tiles fail."""
    failed, proofs = 0, {**table.get("proof", {})}
    compilers.check((use, [share]) for job, tile in jobs.items() for use, share in uses(job, tile))
    here = circumstances()
    for job, tile in jobs.items():
        reason = compilers.of(job, tile)
        proof = prove(job, tile, torch.device("cuda"))
        passed = proof.passed and not reason
        failed += not passed
        proofs.pop(job.key, None)
        if passed:
            proofs[job.key] = {**proof.fields(), **here}
        print(f"{job.key:34s} {'ok    ' if passed else 'FAILED'} {proof} {reason}", flush=True)
    store(out, {**table, "proof": proofs})
    print(f"{out}: {len(jobs)} tiles, {failed} failed; without a tile: what the library computes")
    return failed
