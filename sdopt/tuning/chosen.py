"""Every tile that can be chosen: of the table, for larger batches, and by rule for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

from sdopt.engine import rules, tables
from sdopt.engine.cards import H100, Card
from sdopt.engine.tiles import FLOAT8, Tile, attention_key, convolution_key, product_key
from sdopt.tuning.compiling import make_of, uses
from sdopt.tuning.jobs import CONVOLUTIONS, Job, job_of_key, uses_of

IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)
SIDES = (2, 4, 8, 16, 32, 64, 128)
WIDTHS = (4, 32, 192, 320)
"""Of results: each kind of `columns` by rule, multiples of 160 and others."""
DEPTHS = (8, 320, 2560)
"""Channels that the sums of few and of many programs are split over, or not."""
ROWS = (8, 64, 512, 8192)
KEYS = (8, 16, 20, 64, 77, 128, 200, 256)
HEAD_SIZES = (8, 24, 40, 64, 80, 128, 160)


def stored(table: Mapping[str, Tile]) -> Iterator[tuple[Job, Tile]]:
    """All launches with tiles of a table, of larger batches and of other epilogues too."""
    for key, tile in table.items():
        if not tile.library:
            yield from uses(job_of_key(key), tile)


def by_rule(card: Card = H100) -> Iterator[tuple[Job, Tile]]:
    """Launches with all tiles that the rules make, ended as usual; the sizes stand for all others.

    A plain convolution is one that ends with nothing.
    """
    for key, tile in (*_convolutions(card), *_products(card), *_attentions(card)):
        if not tile.library:
            job = job_of_key(key)
            yield from (
                (use, tile) for use in (uses_of(job) if job.kind == "attention" else (job,))
            )


def ruled(job: Job, card: Card) -> Tile:
    """What the rule makes of one operation on a card, whatever was measured there."""
    x, weight = job.first_two
    if job.kind == "attention":
        return rules.ruled_attention(weight[1], x[-1] // job.heads, card)
    if job.kind in CONVOLUTIONS:
        images, height, width, c = x
        if job.float8:
            return rules.ruled_float8_convolution((images, height, width, c), job.columns, card)
        return rules.ruled_convolution((images, height, width, c), job.columns, job.kind, card)
    rule = rules.ruled_float8_product if job.float8 else rules.ruled_product
    return rule(x[0], weight[1], job.columns, job.kind, card)


def used(job: Job, card: Card) -> Tile:
    """What an operation is cut by now: measured, that of fewer images, or by rule."""
    (x, weight), kind = job.first_two, job.key.split()[0]
    if job.kind == "attention":
        sizes = (x[0], x[1], weight[1])
        return tables.attention_tile(sizes, job.heads, x[-1] // job.heads, card)
    if job.kind in CONVOLUTIONS:
        images, height, width, c = x
        return tables.convolution_tile((images, height, width, c), job.columns, kind, card)
    return tables.product_tile(x[0], weight[1], job.columns, kind, card)


def _convolutions(card: Card) -> Iterator[tuple[str, Tile]]:
    for kind, n, c in product(("conv", "plain", "upsample", "downsample"), WIDTHS, DEPTHS):
        for sizes in ((i, h, w, c) for i, h, w in product(IMAGES, SIDES, SIDES)):
            if kind == "downsample" and c % Tile().depth and not card.pointers:
                continue  # left to the library
            key = convolution_key(sizes, n, kind)
            yield key, rules.ruled_convolution(sizes, n, kind, card)
            wide = n >= rules.FEWEST_SPECIALIZED_COLUMNS
            if card.specialized and c % rules.SPECIALIZED_DEPTH == 0 and wide:
                yield key, rules.ruled_specialized_convolution(sizes, n, kind, card)
            if kind in ("conv", "plain"):
                yield FLOAT8 + key, rules.ruled_float8_convolution(sizes, n, card)


def _products(card: Card) -> Iterator[tuple[str, Tile]]:
    for kind, m, k, n in product(("linear", "joined", "geglu"), ROWS, (64, 320, 2560), WIDTHS):
        if kind != "geglu" or n % 8 == 0:
            key = product_key(m, k, n, kind)
            yield key, rules.ruled_product(m, k, n, kind, card)
            if kind != "joined":
                yield FLOAT8 + key, rules.ruled_float8_product(m, k, n, kind, card)


def _attentions(card: Card) -> Iterator[tuple[str, Tile]]:
    for keys, size in product(KEYS, HEAD_SIZES):
        for tokens in (keys, 4096):
            yield (
                attention_key((2, tokens, keys), 8, size),
                rules.ruled_attention(keys, size, card),
            )


def together(work: Iterable[tuple[Job, Tile]]) -> list[tuple[Job, Sequence[Tile]]]:
    """Each kernel once, those of one operation with each other."""
    seen = set()
    grouped: dict[Job, list[Tile]] = {}
    for job, tile in work:
        if (make := make_of(job, tile)) not in seen:
            seen.add(make)
            grouped.setdefault(job, []).append(tile)
    return list(grouped.items())
