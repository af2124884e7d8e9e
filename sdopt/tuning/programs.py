"""Measure how each operation's work is best cut on this GPU, or prove it: `sdopt tune`.

Generates an image with the engine's levels to see which shapes there are, then times every sensible
tile and the library, weights cold in the cache as they are inside an image. Kernels are compiled
beforehand by processes beside this one, and none is timed whose machine code has a race. The
fastest tile is repeated 200 times, alone and beside other work, and stored in `tuned.json` if all
bits agree and its error is like the library's; otherwise the next one is tried.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from sdopt.engine.proof import HOPPER
from sdopt.engine.tiles import TUNED, Tile
from sdopt.errors import SdoptError
from sdopt.tuning import chosen
from sdopt.tuning.candidates import candidates
from sdopt.tuning.choosing import tune
from sdopt.tuning.compiling import FORK, Compilers, make_of, uses
from sdopt.tuning.jobs import Job, job_of_key, jobs_of_levels
from sdopt.tuning.repeats import prove
from sdopt.tuning.table import circumstances, read_table, store, tiles_of, write_table

LEVELS = ("hoisted", "express")


def usual_processes() -> int:
    """How many compile beside this one."""
    return max(1, min(16, (os.cpu_count() or 2) - 1))


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is asked for: the levels whose shapes are measured, and the table `out`.

    `missing` measures only shapes that the table lacks, `known` only the tiles in it.
    """

    levels: Sequence[str] = LEVELS
    source: str = "sd15-random"
    seconds: float = 300.0
    processes: int
    missing: bool = False
    known: bool = False
    out: Path = TUNED


def _tell_capability() -> None:
    """In a child: its exit code is 10 times the major capability plus the minor, 0 without CUDA."""
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
    sys.exit(10 * major + minor)


def capability() -> int:
    """Of this machine's GPU, 90 for 9.0; asked in a child, since CUDA does not survive a fork."""
    child = FORK.Process(target=_tell_capability)
    child.start()
    child.join()
    if child.exitcode is None or child.exitcode < 10:  # 1 for an error of CUDA's
        raise SdoptError("tiles are measured on a CUDA device, and there is none; run it on one")
    return child.exitcode


def tune_levels(options: Tuning) -> int:
    """Measure what was asked for and write the file. Raises SdoptError without a GPU."""
    until = time.monotonic() + options.seconds
    kept = options.missing or options.known
    before = read_table(options.out) if kept else {"tiles": {}, "measured": {}}
    own = {key: [tile] for key, tile in tiles_of(before).items() if not tile.library}
    device = capability()

    def tiles_to_time(job: Job) -> list[Tile]:
        return own[job.key] if options.known else candidates(job, specialized=device == HOPPER)

    with Compilers(options.processes, device) as compilers:
        jobs = [
            job
            for job in jobs_of_levels(options.levels, options.source)
            if (job.key in own if options.known else job.key not in before["tiles"])
        ]
        compilers.check((job, tiles_to_time(job)) for job in jobs)
        print(
            f"{len(jobs)} shapes; compiled with {until - time.monotonic():.0f} s left", flush=True
        )
        torch.backends.cudnn.benchmark = True
        found = tune(jobs, until, tiles_to_time, compilers, circumstances())
    write_table(options.out, before, found)
    return 0


def check_machine_code(options: Tuning) -> int:
    """Compile all that can be chosen, for Hopper, without a GPU; 1 if anything races."""
    stored = tiles_of(read_table(options.out))
    if find_spec("triton") is None:
        raise SdoptError("kernels are compiled with Triton, and there is none; pip install triton")
    work = chosen.together([*chosen.stored(stored), *chosen.by_rule()])
    with Compilers(options.processes, HOPPER) as compilers:
        verdicts = compilers.check(work)
    known = [(job, tile, verdicts[make_of(job, tile)]) for job, tiles in work for tile in tiles]
    for job, tile, reason in known:
        if reason:
            print(f"{job.key}: {tile} {reason}")
    counts = Counter("clear" if not reason else reason.split(":")[0] for *_, reason in known)
    print(", ".join(f"{count} kernels: {what}" for what, count in sorted(counts.items())))
    return 0 if set(counts) <= {"clear"} else 1


def prove_stored(options: Tuning) -> int:
    """Check and repeat every tile of the table on this GPU, store how; 1 if one fails, by name."""
    table = read_table(options.out)
    stored, proofs = tiles_of(table), {**table.get("proof", {})}
    device, failed = capability(), 0
    jobs = {
        job_of_key(key): tile
        for key, tile in stored.items()
        if not tile.library and (device == HOPPER or not tile.specialized)
    }
    with Compilers(options.processes, device) as compilers:
        compilers.check(
            (use, [share]) for job, tile in jobs.items() for use, share in uses(job, tile)
        )
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
    store(options.out, {**table, "proof": proofs})
    print(f"{len(jobs)} tiles, {failed} failed; without a tile: what the library computes")
    return 1 if failed else 0
