"""The tile of each operation: the fastest that is clear of races and whose result is proved."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from sdopt.engine.tiles import LIBRARY, Tile
from sdopt.tuning.compiling import Compilers, make_of, uses
from sdopt.tuning.jobs import Job, operation
from sdopt.tuning.repeats import Proof, prove
from sdopt.tuning.table import cut_of, row
from sdopt.tuning.timing import time_us, times_us

Compute = Callable[[Tile, int], Any]
TilesOf = Callable[[Job], list[Tile]]


def try_tile(compute: Compute, tile: Tile) -> str:
    """Why a tile cannot be used here, such as more shared memory than there is; '' if it can."""
    from triton.errors import TritonError

    try:
        compute(tile, 0)
    except (TritonError, RuntimeError) as error:  # the latter of a launch that CUDA refuses
        print(f"{cut_of(asdict(tile))}: {error}", file=sys.stderr)
        return str(error)
    return ""


def clear_tiles(job: Job, tiles: Sequence[Tile], verdicts: Mapping[Any, str]) -> list[Tile]:
    """Those whose kernel compiled to machine code without a race; of the others one is told."""
    reasons = {tile: verdicts[make_of(job, tile)] for tile in tiles}
    left_out = [f"{cut_of(asdict(tile))} {why}" for tile, why in reasons.items() if why]
    if left_out:
        print(
            f"{job.key}: {len(left_out)} of {len(tiles)} tiles are not timed, the first of them "
            f"{left_out[0]}",
            file=sys.stderr,
        )
    return [tile for tile, reason in reasons.items() if not reason]


def timed(
    jobs: Sequence[Job], until: float, tiles_of: TilesOf, compilers: Compilers
) -> dict[Job, dict[Tile, float]]:
    """Microseconds of the library and of every clear tile, until the clock says so."""
    verdicts = compilers.check((job, tiles_of(job)) for job in jobs)
    found: dict[Job, dict[Tile, float]] = {}
    for job in jobs:
        if time.monotonic() > until:
            break
        compute = operation(job, torch.device("cuda"))
        usable = [
            tile
            for tile in clear_tiles(job, tiles_of(job), verdicts)
            if not try_tile(compute, tile)
        ]
        found[job] = {LIBRARY: time_us(compute, LIBRARY), **times_us(compute, usable)}
        print(row(job.key, measured(job, found[job])), flush=True)
    return found


def measured(job: Job, times: Mapping[Tile, float]) -> dict[str, Any]:
    """What is stored of the times, with the fastest tile as if it were the one chosen."""
    own = {tile: us for tile, us in times.items() if not tile.library}
    best = min(own, key=lambda tile: own[tile], default=LIBRARY)
    fastest = min(times.values())
    return {
        "us": fastest,
        "library_us": times[LIBRARY],
        "own_us": times[best],
        "own": asdict(best),
        "tried": len(own),
        "tflops": job.flop / fastest / 1e6,
    }


def chosen(
    times: Mapping[Tile, float],
    race_of: Callable[[Tile], str],
    proof_of: Callable[[Tile], Proof],
    tell: Callable[[str], None] = print,
) -> tuple[Tile, Proof | None]:
    """The fastest tile that is clear in all its uses and proved; else the library."""
    for tile in sorted(times, key=lambda one: times[one]):
        if tile.library:
            break
        cut = cut_of(asdict(tile))
        if reason := race_of(tile):
            tell(f"  {cut} is left out: {reason}")
            continue
        proof = proof_of(tile)
        if proof.passed:
            return tile, proof
        tell(f"  {cut} is left out: {proof}")
    return LIBRARY, None


def tune(
    jobs: Sequence[Job],
    until: float,
    tiles_of: TilesOf,
    compilers: Compilers,
    circumstances: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """The tile of each job, its times and its proof."""
    times = timed(jobs, until, tiles_of, compilers)
    fastest = ((job, min(own, key=lambda tile: own[tile])) for job, own in times.items())
    compilers.check(  # together, which is quicker than one by one below
        (use, [share])
        for job, tile in fastest
        if not tile.library
        for use, share in uses(job, tile)
    )
    device = torch.device("cuda")
    found = {}
    for job, own in times.items():
        tile, proof = chosen(
            own,
            lambda one: compilers.of(job, one),  # noqa: B023 (called at once)
            lambda one: prove(job, one, device),  # noqa: B023
            lambda text: print(f"{job.key}\n{text}", flush=True),  # noqa: B023
        )
        found[job.key] = {
            **measured(job, own),
            "tile": asdict(tile),
            "us": own[tile],
            "tflops": job.flop / own[tile] / 1e6,
            "proof": None if proof is None else {**proof.fields(), **circumstances},
        }
    return found
