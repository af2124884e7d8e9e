"""Every tile worth timing for an operation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

from sdopt.engine.cards import H100, Card
from sdopt.engine.rules import FLOAT8_DEPTH, MOST_KEYS
from sdopt.engine.tiles import LEAST_STAGES, Tile
from sdopt.tuning.chosen import ruled
from sdopt.tuning.jobs import CONVOLUTIONS, Job

FEWEST_BLOCKS = 6
MOST_PROGRAMS = 330
FEWEST_PROGRAMS = 96
SHARED_BYTES = 200_000
"""Of the 227 KiB that a program may have: the rest is for what a sum ends with."""
DEPTH = 64
MOST_STAGES = 8
MOST_REGISTERS, MOST_REGISTERS_OF_THREE = 192, 120
"""Of a thread of specialized attention, for scores, weights and sums: what compiles unspilled."""
WIDEST_POLYNOMIAL = 64
"""Entries of a head; of wider ones the matrix unit takes longer than exponentials do."""
MOST_SUM = 128 * 128
"""Entries of a sum that one warp group's registers hold, beside what it needs to end it."""


def candidates(job: Job, card: Card = H100) -> list[Tile]:
    """The tiles to time on a card: those that it can read for, and has the shared memory for."""
    if job.kind == "attention":
        found = [tile for tile in _attention_tiles(job) if not (tile.boxed and card.pointers)]
        return [*found, *_specialized_attention_tiles(job)] if card.specialized else found
    if job.float8:
        return list(_specialized_tiles(job)) or [ruled(job, card)]
    convolving = job.kind in CONVOLUTIONS
    found = [*(_convolution_tiles(job) if convolving else _product_tiles(job))]
    if card.pointers:
        found = [replace(tile, pointers=True) for tile in found]
    found = [tile for tile in found if shared_bytes(tile, gated=job.kind == "geglu") <= _room(card)]
    if card.specialized:
        found += [*_specialized_tiles(job), *_stationary_tiles(job, card)]
    return list(dict.fromkeys(found)) or [ruled(job, card)]


def near(job: Job, known: Mapping[str, Tile], possible: Sequence[Tile]) -> list[Tile]:
    """Of the possible tiles those that other shapes of this kind have, by key, split or not.

    All of them, if none of the others' can be used here.
    """
    of_kind = [tile for key, tile in known.items() if _family(key) == _family(job.key)]
    others = {*of_kind, *(replace(tile, splits=1) for tile in of_kind)}
    return [tile for tile in possible if tile in others] or list(possible)


def _family(key: str) -> str:
    """Kinds that are one, as to how they are cut: a residual makes no difference."""
    return key.split()[0].replace("added", "linear")


def shared_bytes(tile: Tile, *, gated: bool = False) -> int:
    """Of the stages of a tile of a product or a convolution; Triton may need one less."""
    columns = tile.columns * (1 + gated) + tile.extra
    return 2 * tile.depth * (tile.pixels + columns) * tile.stages


def _room(card: Card) -> int:
    return min(SHARED_BYTES, card.shared_bytes)


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


def _specialized_attention_tiles(job: Job) -> Iterator[Tile]:
    """Two or three consumers of 64 tokens, or two of 128; none for the few keys of a prompt."""
    (_, tokens, width), (_, keys, _) = job.first_two
    if keys <= MOST_KEYS // 2 or width // job.heads % 8:
        return
    for high, warps, most in ((128, 8, MOST_REGISTERS), (256, 8, MOST_REGISTERS),
                              (192, 12, MOST_REGISTERS_OF_THREE)):  # fmt: skip
        if high > max(128, tokens):
            continue
        heads = _parts(width // job.heads)
        for columns, ahead, parts in product((64, 128), (False, True), heads):
            softmax = columns * (3 + 2 * ahead) // 4  # scores, and weights in half the bytes
            registers = high * 4 // warps // 64 * (softmax + sum(parts) // 2)
            if keys % (columns * (1 + ahead)) or registers > most:
                continue
            tile = Tile(
                height=high, width=1, columns=columns, depth=parts[0], extra=parts[1], stages=4,
                warps=warps, specialized=True, ahead=ahead,
            )  # fmt: skip
            while attention_bytes(tile) > SHARED_BYTES and tile.stages > 1:
                tile = replace(tile, stages=tile.stages - 1)
            if tile.stages > 1:
                several = (0, 16, 8) if sum(parts) <= WIDEST_POLYNOMIAL else (0,)
                yield from (replace(tile, polynomial=every) for every in several)


def attention_bytes(tile: Tile) -> int:
    """Of the shared memory of specialized attention: queries twice, and stages of the rest."""
    return 4 * (tile.depth + tile.extra) * (tile.height + tile.columns * tile.stages)


def _parts(size: int) -> Iterator[tuple[int, int]]:
    """Powers of 2 that hold a head's entries: two that fit closely, and one."""
    whole = max(16, 1 << (size - 1).bit_length())
    main = whole // 2
    extra = max(16, 1 << (size - main - 1).bit_length())
    if main >= 16 and main + extra < whole:
        yield main, extra
    if whole <= 128:
        yield whole, 0


def _made(job: Job) -> tuple[int, int, int]:
    """Images, height and width of what a convolution makes, before it is doubled."""
    images, height, width, _ = job.first_two[0]
    by = 2 if job.kind == "downsample" else 1
    return images, height // by, width // by


def _convolution_tiles(job: Job) -> Iterator[Tile]:
    x, weight = job.first_two
    images, height, width = _made(job)
    phases = 4 if job.kind == "upsample" else 1
    n, taps = job.columns, weight[1]
    for box in _boxes(images, height, width):
        tiles = phases * -(-images // box[0]) * -(-height // box[1]) * -(-width // box[2])
        blocks = taps * taps * -(-x[-1] // 64)
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
    gated, n = job.kind == "geglu", job.columns
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
                if (pixels + columns) * 64 * 2 * stages <= SHARED_BYTES:
                    yield columns, 0, 64, stages, warps


def _specialized_tiles(job: Job) -> Iterator[Tile]:
    """Two boxes a program, one of each consumer, and as many stages as there is room for."""
    gated, n = job.kind == "geglu", job.columns
    whole = gated or job.kind == "upsample"
    _, weight = job.first_two
    depth = FLOAT8_DEPTH if job.float8 else DEPTH  # of as many bytes
    blocks = -(-weight[-1] // depth) * (weight[1] ** 2 if job.kind in CONVOLUTIONS else 1)
    for box, programs in _specialized_boxes(job):
        pixels = box[0] * box[1] * box[2]
        for columns, extra in _specialized_columns(n, gated):
            if pixels * (columns + extra) > MOST_SUM or columns > 2 * n:
                continue
            across = -(-n // (columns if gated else columns + extra))
            for stages in _specialized_stages(pixels, columns + extra):
                for splits in _splits(programs * across, blocks, not whole):
                    yield Tile(
                        images=box[0], height=box[1], width=box[2], columns=columns, extra=extra,
                        depth=depth, stages=stages, splits=splits, specialized=True,
                    )  # fmt: skip


def _stationary_tiles(job: Job, card: Card) -> Iterator[Tile]:
    """GEGLU whose weights stay in shared memory, and all other room there is of stages of x."""
    if job.kind != "geglu" or job.float8:
        return
    _, weight = job.first_two
    for pixels, columns in ((64, 128), (64, 64), (128, 64)):
        for stages in range(MOST_STAGES, LEAST_STAGES - 1, -1):
            tile = Tile(
                height=pixels, width=1, columns=columns, extra=columns, depth=DEPTH, stages=stages,
                specialized=True, stationary=True,
            )  # fmt: skip
            if tile.keeps(weight[-1], job.columns, card.shared_bytes):
                if job.columns // columns <= card.multiprocessors:
                    yield tile
                break


def _specialized_columns(n: int, gated: bool) -> tuple[tuple[int, int], ...]:
    """Columns and extra ones; of GEGLU these are the gate."""
    if gated:
        return (64, 64), (128, 128)
    uneven = ((128, 32),) if n % 160 == 0 else ()
    return (64, 0), (128, 0), *uneven, (256, 0)


def _specialized_stages(pixels: int, columns: int) -> tuple[int, ...]:
    """The most that fit, and two less, which leaves the cache more room."""
    most = min(MOST_STAGES, SHARED_BYTES // (2 * DEPTH * (2 * pixels + columns)))
    return () if most < 3 else (most, most - 2) if most > 4 else (most,)


def _specialized_boxes(job: Job) -> Iterator[tuple[tuple[int, int, int], int]]:
    """A consumer's pixels, at most two shapes of 64 and of 128, and how many programs they make."""
    if job.kind not in CONVOLUTIONS:
        for pixels in (64, 128):
            yield (1, pixels, 1), -(-job.first_two[0][0] // (2 * pixels))
        return
    images, height, width = _made(job)
    phases = 4 if job.kind == "upsample" else 1
    for pixels in (64, 128) if images * height * width > 4096 else (64,):
        fitting = []
        for wide in (64, 32, 16, 8, 4):
            high = min(pixels // wide, 1 << (height - 1).bit_length())
            if wide <= width and high * wide * images >= pixels:
                fitting.append((pixels // (wide * high), high, wide))
        for box in fitting[:2]:
            tiles = -(-images // box[0]) * -(-height // box[1]) * -(-width // box[2])
            yield box, phases * -(-tiles // 2)


def _splits(tiles: int, blocks: int, allowed: bool) -> Iterator[int]:
    yield 1
    for splits in (2, 3, 4, 6, 8, 12):
        fits = FEWEST_PROGRAMS <= tiles * splits <= MOST_PROGRAMS
        if allowed and fits and blocks // splits >= FEWEST_BLOCKS:
            yield splits
