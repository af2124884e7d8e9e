"""The operations of an image: their keys, shapes, operands and how they are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from sdopt.engine import dependent, ops
from sdopt.engine.cards import card_of
from sdopt.engine.float8 import Rounded, rounded_weight, to_float8
from sdopt.engine.tiles import FLOAT8, Tile
from sdopt.util.precision import chosen_dtype

CONVOLUTIONS = ("conv", "plain", "upsample", "downsample")
PRODUCTS = ("linear", "added", "joined")
"""Of whole matrices; GEGLU's is one of two halves."""
COLD_BYTES = 120 * 2**20
"""Weights in turn that together do not fit into the L2 cache, as in an image."""
MOST_TURNS = 24
DEPTH = 64
"""A joined product's second input is a multiple of it, as in Stable Diffusion."""

Shape = tuple[int, ...]
Operands = Sequence[Any]
"""Tensors, of float8 the weight as `Rounded`, and None where there is none."""
FACTOR = 8.0
"""By which an operand in float8 was multiplied, that of most norms."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One operation of an image: its key and its operands' shapes, None where it has none."""

    key: str
    shapes: tuple[Shape | None, ...]
    relu: bool = False
    causal: bool = False

    @property
    def kind(self) -> str:
        """'conv', 'plain', 'upsample', 'downsample', 'linear', 'added', 'joined', 'geglu' or
        'attention'."""
        return self.key.split()[0].removeprefix(FLOAT8)

    @property
    def float8(self) -> bool:
        """Whether its operands are."""
        return self.key.startswith(FLOAT8)

    @property
    def heads(self) -> int:
        """Of an attention."""
        return int(self.key.split("-")[1].split("x")[0])

    @property
    def flop(self) -> int:
        """Floating-point operations of the mathematics; a doubled image's in its folded form."""
        x, weight = self.first_two
        if self.kind == "attention":
            return 4 * prod(x) * weight[1]
        return 2 * prod(weight) * (prod(x) // x[-1]) // (4 if self.kind == "downsample" else 1)

    @property
    def first_two(self) -> tuple[Shape, Shape]:
        """The shapes of what every operation has: input and weight; queries and keys."""
        x, weight = self.shapes[:2]
        if x is None or weight is None:
            raise ValueError(f"{self.key}: an operation has an input and a weight")
        return x, weight

    @property
    def columns(self) -> int:
        """Of the result; of an attention, the width of all heads."""
        _, weight = self.first_two
        parts = {"upsample": 4, "geglu": 2}.get(self.kind, 1)
        return weight[-1] if self.kind == "attention" else weight[0] // parts


def jobs_of_levels(
    names: Sequence[str],
    source: str,
    images: Sequence[int] = (1,),
    sizes: Sequence[tuple[int, int]] = (),
) -> list[Job]:
    """The operations of a call of each level, in the order in which they first come.

    A call for each number of `images`, in each of `sizes` (width and height in pixels; none is the
    source's own).
    """
    from sdopt.engine.cuda_graphs import eager_calls
    from sdopt.pipelines.pipeline import load_pipeline
    from sdopt.pipelines.workload import generate_batch, load_workload

    in_pixels = [{"width": width, "height": height} for width, height in sizes] or [{}]
    jobs: dict[str, Job] = {}
    for name in names:
        pipeline = load_pipeline(name, source=source)
        request = load_workload(pipeline.source).requests[0]
        for count, size in product(images, in_pixels):
            with ops.shapes_seen() as seen, eager_calls():
                generate_batch(pipeline, [request] * count, **size)
            for key, operands in seen.items():
                shapes = tuple(None if t is None else tuple(t.shape) for t in operands)
                jobs.setdefault(key, Job(key=key, shapes=shapes))
    return list(jobs.values())


def job_of_key(key: str) -> Job:
    """The operation that a key of the table names, with all the operands that it can have."""
    kind, rest = key.removeprefix(FLOAT8).split()
    sizes, last = rest.rsplit("-", 1)
    shape = tuple(map(int, sizes.split("x")))
    if kind == "attention":
        heads, size = map(int, last.split("x"))
        q, k = (shape[0], shape[1], heads * size), (shape[0], shape[2], heads * size)
        return Job(key=key, shapes=(q, k, k))
    n, c = int(last), shape[-1]
    if kind in CONVOLUTIONS:
        weight = (4 * n, 2, 2, c) if kind == "upsample" else (n, 3, 3, c)
        more = {"conv": ((n,), (*shape[:3], n)), "plain": (None, None)}.get(kind, ((n,),))
        return Job(key=key, shapes=(shape, weight, *more))
    if kind == "geglu":
        return Job(key=key, shapes=(shape, (2 * n, c), (2 * n,)))
    m, second = shape[0], (c // 2 // DEPTH * DEPTH or c // 2) if kind == "joined" else 0
    x2 = (m, second) if second else None
    return Job(key=key, shapes=((m, c - second), (n, c), (n,), x2, (m, n)))


def uses_of(job: Job) -> Iterator[Job]:
    """The job and the others that take its tile: they end otherwise, and have kernels of their own.

    A plain convolution without a tile takes that of one with a bias, an added product that of one
    without a residual.
    """
    usual = job_of_key(job.key)
    x, weight, *more = usual.shapes
    if job.kind == "attention":
        square = usual.shapes[0] == usual.shapes[1]
        yield from (replace(usual, causal=causal) for causal in (False, True)[: 1 + square])
    elif job.kind == "conv":
        bias, residual = more
        for ends in ((None, None), (None, residual), (bias, None), (bias, residual)):
            for relu in (False, True)[: 1 + (ends[0] is not None)]:
                yield replace(usual, shapes=(x, weight, *ends), relu=relu)
    elif job.kind == "added":
        bias, _, residual = more
        yield from (replace(usual, shapes=(x, weight, one, None, residual)) for one in (None, bias))
    elif job.kind in ("linear", "joined"):
        bias, x2, residual = more
        for one, other in ((None, None), (None, residual), (bias, None), (bias, residual)):
            yield replace(usual, shapes=(x, weight, one, x2, other))
    elif job.kind in ("upsample", "downsample"):
        yield from (replace(usual, shapes=(x, weight, bias)) for bias in (None, more[0]))
    else:
        yield usual


def operand_dtype() -> torch.dtype:
    """float16, or bfloat16 where $SDOPT_DTYPE says so; tiles serve both, as wide as each other."""
    dtype: torch.dtype = getattr(torch, chosen_dtype("cuda"))
    return dtype


def empty_operands(job: Job) -> list[Tensor | Rounded | None]:
    """In the host's memory, of which nothing is touched: to compile for."""
    dtype = operand_dtype()
    empty = [None if s is None else torch.empty(s, dtype=dtype) for s in job.shapes]
    if not job.float8:
        return [*empty]
    x, weight = job.first_two
    kind = torch.float8_e4m3fn
    scale = torch.empty(weight[0], dtype=torch.float32)
    rounded = Rounded(values=torch.empty(weight, dtype=kind), scale=scale, dtype=dtype)
    return [torch.empty(x, dtype=kind), rounded, *empty[2:]]


def random_operands(job: Job, device: torch.device) -> list[Tensor | Rounded | None]:
    """Normal ones. Queries, keys and values of one image are parts of one tensor, as in a UNet."""
    if job.kind == "attention" and len({*job.shapes}) == 1:
        q, _ = job.first_two
        return list(_random((*q[:2], 3 * q[2]), device).chunk(3, dim=-1))
    if not job.float8:
        return [None if s is None else _random(s, device) for s in job.shapes]
    x, weight = (_random(shape, device) for shape in job.first_two)
    more = (None if s is None else _random(s, device) for s in job.shapes[2:])
    return [to_float8(x, FACTOR), rounded_weight(weight, FACTOR), *more]


def _random(shape: Shape, device: torch.device) -> Tensor:
    return torch.randn(shape, device=device, dtype=operand_dtype()) * 0.1


def computed(job: Job, operands: Operands, tile: Tile | None) -> Tensor:
    """The operation cut that way, launched as in an image; by the library if there is no tile."""
    x = operands[0]
    if x is None or not x.is_cuda:
        return _computed(job, operands, tile)
    with dependent.launches(card_of(x.device).dependent):
        return _computed(job, operands, tile)


def _computed(job: Job, operands: Operands, tile: Tile | None) -> Tensor:
    x, weight, *more = operands
    if x is None or weight is None:
        raise ValueError(f"{job.key}: an operation has an input and a weight")
    bias = more[0]
    if job.kind in ("conv", "plain"):
        return ops.tiled_convolution(x, weight, bias, tile, residual=more[1], relu=job.relu)
    if job.kind == "upsample":
        return ops.tiled_upsample_convolution(x, weight, bias, tile)
    if job.kind == "downsample":
        return ops.tiled_downsample_convolution(x, weight, bias, tile)
    if job.kind in PRODUCTS:
        return ops.tiled_linear(x, weight, bias, tile, x2=more[1], residual=more[2])
    if bias is None:
        raise ValueError(f"{job.key}: it has a third operand")
    if job.kind == "geglu":
        return ops.tiled_geglu(x, weight, bias, tile)
    return ops.tiled_attention(x, weight, bias, job.heads, tile, causal=job.causal)


def operation(job: Job, device: torch.device) -> Callable[[Tile, int], Any]:
    """A function that computes the job with a tile, on its weights number i of many."""
    x, weight, *more = random_operands(job, device)
    weights = [weight]
    if job.kind != "attention":
        size = prod(job.first_two[1]) * (1 if job.float8 else 2)
        turns = max(1, min(MOST_TURNS, COLD_BYTES // size))
        weights += [random_operands(job, device)[1] for _ in range(turns - 1)]
    return lambda tile, turn: computed(job, (x, weights[turn % len(weights)], *more), tile)
