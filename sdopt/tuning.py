"""Measure how each operation's work is best cut on this GPU: `python -m sdopt.tuning`.

Draws a picture with the engine's levels to see which shapes there are, then times every sensible
tile and the library, weights cold in the cache as they are inside a picture, and writes the fastest
into `tuned.json`. Kernels are compiled beforehand by processes beside this one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sdopt.baselines import write_whole
from sdopt.engine import ops
from sdopt.engine.tiles import LIBRARY, MOST_KEYS, TUNED, Tile, ruled_convolution
from sdopt.errors import BrokenFileError, SdoptError

FORK = multiprocessing.get_context("fork")
COLD_BYTES = 120 * 2**20
"""Weights in turn that together do not fit into the L2 cache, as in a picture."""
MOST_TURNS = 24
ROUNDS = 5
FEWEST_BLOCKS = 6
MOST_PROGRAMS = 330
FEWEST_PROGRAMS = 96


@dataclass(frozen=True, kw_only=True)
class Job:
    """One operation of a picture: its key and its operands' shapes, None where it has none."""

    key: str
    shapes: tuple[tuple[int, ...] | None, ...]

    @property
    def kind(self) -> str:
        """'conv', 'plain', 'doubled', 'halved', 'linear', 'joined', 'geglu' or 'attention'."""
        return self.key.split()[0]

    @property
    def heads(self) -> int:
        """Of an attention."""
        return int(self.key.split("-")[1].split("x")[0])

    @property
    def flop(self) -> int:
        """Floating-point operations of the mathematics; a doubled picture's in its folded form."""
        x, weight = self.first_two
        if self.kind == "attention":
            return 4 * _size(x) * weight[1]
        return 2 * _size(weight) * (_size(x) // x[-1]) // (4 if self.kind == "halved" else 1)

    @property
    def first_two(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of what every operation has: input and weight; queries and keys."""
        x, weight = self.shapes[:2]
        if x is None or weight is None:
            raise ValueError(f"{self.key}: an operation has an input and a weight")
        return x, weight


def jobs_of_levels(names: Sequence[str], source: str) -> list[Job]:
    """The operations of one picture of each level, in the order in which they first come."""
    from sdopt.optimizations.cuda_graphs import eager_calls
    from sdopt.pipeline import load_pipeline
    from sdopt.workload import generate, load_workload

    jobs: dict[str, Job] = {}
    for name in names:
        pipeline = load_pipeline(name, source=source)
        request = load_workload(pipeline.source).requests[0]
        with ops.shapes_seen() as seen, eager_calls():
            generate(pipeline, request)
        for key, operands in seen.items():
            shapes = tuple(None if t is None else tuple(t.shape) for t in operands)
            jobs.setdefault(key, Job(key=key, shapes=shapes))
    return list(jobs.values())


def candidates(job: Job) -> list[Tile]:
    """Every tile worth timing for this operation."""
    if job.kind == "attention":
        return list(_attention_tiles(job))
    convolving = job.kind in ("conv", "plain", "doubled", "halved")
    found = _convolution_tiles(job) if convolving else _product_tiles(job)
    return list(dict.fromkeys(found)) or [_by_rule(job)]


def _attention_tiles(job: Job) -> Iterator[Tile]:
    (_, tokens, _), (_, keys, _) = job.first_two
    several = (False, True) if keys > MOST_KEYS else (False,)
    for high, warps in ((32, 2), (64, 4), (128, 4), (128, 8)):
        if high > max(64, tokens) or (high == 32 and tokens > MOST_KEYS):
            continue
        for columns in (16, 32, 64, 128):
            too_wide, too_small = columns > max(16, 2 * keys - 1), columns < 32 and keys > 32
            if too_wide or too_small or high * columns > 2048 * warps:
                continue
            for stages in (2, 3) if keys > columns else (1,):
                for boxed in several:
                    yield Tile(
                        height=high, width=1, columns=columns, stages=stages, warps=warps,
                        boxed=boxed,
                    )  # fmt: skip


def _by_rule(job: Job) -> Tile:
    """For widths whose pixels fill no box."""
    x, weight = job.first_two
    images, height, width, c = x
    n = weight[0] // (4 if job.kind == "doubled" else 1)
    return ruled_convolution((images, height, width, c), n, job.kind)


def _convolution_tiles(job: Job) -> Iterator[Tile]:
    x, weight = job.first_two
    images, height, width, c = x
    phases = 4 if job.kind == "doubled" else 1
    if job.kind == "halved":
        height, width = height // 2, width // 2
    n, taps = weight[0] // phases, weight[1]
    for box in _boxes(images, height, width):
        tiles = phases * -(-images // box[0]) * -(-height // box[1]) * -(-width // box[2])
        blocks = taps * taps * -(-c // 64)
        pixels = box[0] * box[1] * box[2]
        for columns, extra, depth, stages, warps in (*_cuts(pixels, n), *_uneven_cuts(pixels, n)):
            across = -(-n // (columns + extra))
            for splits in _splits(tiles * across, blocks, phases == 1):
                yield Tile(
                    images=box[0], height=box[1], width=box[2], columns=columns, extra=extra,
                    depth=depth, stages=stages, warps=warps, splits=splits,
                )  # fmt: skip


def _boxes(images: int, height: int, width: int) -> Iterator[tuple[int, int, int]]:
    for pixels in (64, 128, 256):
        if pixels == 64 and images * height * width > 4096:
            continue
        for wide in {min(16, width), min(64, width)}:
            if wide & (wide - 1):
                continue
            high = min(pixels // wide, 1 << (height - 1).bit_length())
            several = pixels // (wide * high)
            if several <= images:
                yield several, high, wide


def _product_tiles(job: Job) -> Iterator[Tile]:
    x, weight = job.first_two
    rows, k = x[0], weight[1]
    gated = job.kind == "geglu"
    n = weight[0] // 2 if gated else weight[0]
    for high in (64, 128, 256):
        if high == 64 and rows > 4096:
            continue
        uneven = () if gated else _uneven_cuts(high, n)
        for columns, extra, depth, stages, warps in (*_cuts(high * (1 + gated), n), *uneven):
            tiles = -(-rows // high) * -(-n // (columns + extra))
            for splits in _splits(tiles, -(-k // depth), not gated):
                yield Tile(
                    height=high, width=1, columns=columns, extra=extra, depth=depth,
                    stages=stages, warps=warps, splits=splits,
                )  # fmt: skip


def _uneven_cuts(pixels: int, n: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Cuts by 160 columns, of which Stable Diffusion's widths are multiples."""
    if n % 160 == 0 and pixels <= 128:
        for stages in (3, 4):
            yield 128, 32, 64, stages, 8 if pixels == 128 else 4


def _cuts(pixels: int, n: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Columns, extra ones, depth, stages and warps that fit the registers and the shared memory."""
    for columns in (16, 32, 64, 128, 256):
        too_wide = columns > 16 and columns >= 2 * n
        too_small = columns < 64 and n >= 64 and not (columns == 32 and pixels >= 256)
        if too_wide or too_small or pixels * columns > 32768:
            continue
        for warps in (4, 8):
            entries = pixels * columns // (32 * warps)
            if entries > 128 or (warps == 8 and entries < 32) or (warps == 8 and pixels < 128):
                continue
            for stages in (3, 4):
                if (pixels + columns) * 64 * 2 * stages <= 200_000:
                    yield columns, 0, 64, stages, warps


def _splits(tiles: int, blocks: int, allowed: bool) -> Iterator[int]:
    yield 1
    for splits in (2, 3, 4, 6, 8, 12):
        fits = FEWEST_PROGRAMS <= tiles * splits <= MOST_PROGRAMS
        if allowed and fits and blocks // splits >= FEWEST_BLOCKS:
            yield splits


def operation(job: Job, device: torch.device) -> Callable[[Tile, int], Any]:
    """A function that computes the job with a tile, on its weights number i of many."""
    if job.kind == "attention":
        return _attention(job, device)
    x, weight = (_random(shape, device) for shape in job.first_two)
    bias, *more = (None if s is None else _random(s, device) for s in job.shapes[2:])
    turns = max(1, min(MOST_TURNS, COLD_BYTES // (2 * weight.numel())))
    weights = [weight, *(torch.randn_like(weight) for _ in range(turns - 1))]

    def compute(tile: Tile, turn: int) -> Any:
        w = weights[turn % turns]
        if job.kind in ("conv", "plain"):
            return ops.tiled_convolution(x, w, bias, tile, residual=more[0])
        if job.kind == "doubled":
            return ops.tiled_doubled_convolution(x, w, bias, tile)
        if job.kind == "halved":
            return ops.tiled_halved_convolution(x, w, bias, tile)
        if job.kind == "geglu":
            return ops.tiled_geglu(x, w, bias, tile)  # type: ignore[arg-type]
        return ops.tiled_linear(x, w, bias, tile, x2=more[0], residual=more[1])

    return compute


def _attention(job: Job, device: torch.device) -> Callable[[Tile, int], Any]:
    """Queries, keys and values of one picture are parts of one tensor, as in the UNet."""
    q_shape, k_shape = job.first_two
    if q_shape == k_shape:
        q, k, v = _random((*q_shape[:2], 3 * q_shape[2]), device).chunk(3, dim=-1)
    else:
        q, k, v = (_random(shape, device) for shape in (q_shape, k_shape, k_shape))
    return lambda tile, _: ops.tiled_attention(q, k, v, job.heads, tile)


def time_us(compute: Callable[[Tile, int], Any], tile: Tile) -> float:
    """Median microseconds of one operation, replayed in a graph over weights in turn."""
    compute(tile, 0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for turn in range(MOST_TURNS):
            compute(tile, turn)
    graph.replay()
    times = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / MOST_TURNS)
    return float(median(times))


def compile_all(queue: Any) -> None:
    """In a process of its own: compile what the queue names, until it names None."""
    while (item := queue.get()) is not None:
        job, tiles = item
        compute = operation(job, torch.device("cuda"))
        for tile in tiles:
            _try(compute, tile)
        torch.cuda.synchronize()


def _try(compute: Callable[[Tile, int], Any], tile: Tile) -> str | None:
    """Why a tile cannot be used, such as more shared memory than there is."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources

    try:
        compute(tile, 0)
    except (OutOfResources, CompilationError) as error:
        print(f"{tile}: {error}", file=sys.stderr)
        return str(error)
    return None


def distinct(
    jobs: Sequence[Job], tiles_of: Callable[[Job], list[Tile]] = candidates
) -> list[tuple[Job, list[Tile]]]:
    """Each kernel to compile once: tiles of the same make differ only in what they are given."""
    seen: set[Any] = set()
    work = []
    for job in jobs:
        tiles = []
        for tile in tiles_of(job):
            make = {**asdict(tile), "splits": tile.splits > 1}
            operands = tuple(s is None for s in job.shapes)
            made_for = job.key if job.kind == "attention" else job.first_two[1][0] % 16 == 0
            key = (job.kind, operands, made_for, tuple(make.items()))
            if key not in seen:
                seen.add(key)
                tiles.append(tile)
        work += [(job, tiles[start : start + 8]) for start in range(0, len(tiles), 8)]
    return work


def tune(
    jobs: Sequence[Job],
    until: float,
    tiles_of: Callable[[Job], list[Tile]] = candidates,
) -> dict[str, dict[str, Any]]:
    """The fastest tile of each job with its time and the library's, until the clock says so."""
    found: dict[str, dict[str, Any]] = {}
    for job in jobs:
        if time.monotonic() > until:
            break
        compute = operation(job, torch.device("cuda"))
        library = time_us(compute, LIBRARY)
        times = {t: time_us(compute, t) for t in tiles_of(job) if _try(compute, t) is None}
        best = min(times, key=lambda tile: times[tile])
        chosen = LIBRARY if library < times[best] else best
        found[job.key] = {
            "tile": asdict(chosen),
            "us": min(library, times[best]),
            "library_us": library,
            "own_us": times[best],
            "own": asdict(best),
            "tried": len(times),
            "tflops": job.flop / min(library, times[best]) / 1e6,
        }
        print(_row(job.key, found[job.key]), flush=True)
    return found


def _row(key: str, found: Mapping[str, Any]) -> str:
    own = found["own"]
    cut = "{images}x{height}x{width}x{columns}+{extra}x{depth} s{stages} w{warps} /{splits}".format(
        **own
    )
    return (
        f"{key:34s} {found['us']:8.1f} us {found['tflops']:6.0f} TFLOP/s"
        f"  library {found['library_us']:8.1f}  own {found['own_us']:8.1f}  {cut}"
    )


def read_table(path: Path) -> dict[str, Any]:
    """What was written there before. Raises BrokenFileError if that is no such file."""
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BrokenFileError(
            f"{path} cannot be read: {error}; leave --missing and --known out"
        ) from error
    if not {"tiles", "measured"} <= set(table):
        raise BrokenFileError(f"{path} is no table of tiles; leave --missing and --known out")
    return table


def _random(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randn(shape, device=device, dtype=torch.float16) * 0.1


def _size(shape: Sequence[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def has_gpu() -> bool:
    """Whether there is a CUDA device; asked in a child, since CUDA does not survive a fork."""
    child = FORK.Process(target=lambda: sys.exit(0 if torch.cuda.is_available() else 1))
    child.start()
    child.join()
    return child.exitcode == 0


def tune_levels(options: argparse.Namespace) -> None:
    """Measure what was asked for and write the file. Raises SdoptError without a GPU."""
    until = time.monotonic() + options.seconds
    kept = options.missing or options.known
    before = read_table(options.out) if kept else {"tiles": {}, "measured": {}}
    if not has_gpu():
        raise SdoptError("tiles are measured on a CUDA device, and there is none; run it on one")
    own = {key: [tile] for key, tile in _tiles(before).items() if not tile.library}
    queue: Any = FORK.SimpleQueue()
    helpers = [
        FORK.Process(target=compile_all, args=(queue,), daemon=True)
        for _ in range(options.processes)
    ]
    for helper in helpers:  # before this process touches the device
        helper.start()
    jobs = [
        job
        for job in jobs_of_levels(options.levels, options.source)
        if (job.key in own if options.known else job.key not in before["tiles"])
    ]

    def tiles_of(job: Job) -> list[Tile]:
        return own[job.key] if options.known else candidates(job)

    for item in (*distinct(jobs, tiles_of), *(None for _ in helpers)):
        queue.put(item)
    for helper in helpers:
        helper.join()
    print(f"{len(jobs)} shapes; compiled with {until - time.monotonic():.0f} s left", flush=True)
    torch.backends.cudnn.benchmark = True
    found = tune(jobs, until, tiles_of)
    content = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "tiles": before["tiles"] | {key: value["tile"] for key, value in found.items()},
        "measured": before["measured"]
        | {
            key: {name: round(value[name], 2) for name in ("us", "library_us", "own_us", "tflops")}
            for key, value in found.items()
        },
    }
    write_whole(options.out, json.dumps(content, indent=1).encode() + b"\n")


def _tiles(table: Mapping[str, Any]) -> dict[str, Tile]:
    return {key: Tile(**fields) for key, fields in table["tiles"].items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune and write the file; 2 for a mistake in the options."""
    parser = argparse.ArgumentParser(prog="python -m sdopt.tuning", description=__doc__)
    parser.add_argument(
        "--levels", nargs="+", default=["hoisted", "express"], help="draw the shapes to measure"
    )
    parser.add_argument("--source", default="sd15-random", help="as --sdopt-source of the suite")
    parser.add_argument("--seconds", type=float, default=300.0, help="compiling and timing (300)")
    parser.add_argument("--processes", type=int, default=12, help="that compile (12)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--missing", action="store_true", help="only shapes that --out lacks")
    which.add_argument(
        "--known", action="store_true", help="only the tiles in --out, against the library anew"
    )
    parser.add_argument("--out", type=Path, default=TUNED, help="table to write (the engine's own)")
    try:
        tune_levels(parser.parse_args(arguments))
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
