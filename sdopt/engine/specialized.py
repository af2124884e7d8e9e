"""Convolution and product for Hopper with every operand in shared memory, in Gluon.

One warp loads through the tensor memory accelerator (the producer), two warp groups multiply (the
consumers), each its own BI x BH x BW pixels of the same columns. A box of an image is only renamed
to a matrix where it lies, so no operand of the matrix unit passes through registers, and nothing
can be overwritten that it still reads. The kernels of `sdopt.engine.kernels` feed it from registers
there, which Triton's pipelining may refill too early; see docs/lab-notes/pitfalls.md.

Gluon is experimental: `specialized_launch.GLUON_VERSIONS` are those that this compiles with.
"""

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from sdopt.engine import epilogue, waiting

_activated = gluon.jit(epilogue.activated)
_gelu = gluon.jit(epilogue.gelu)
_wait_for_earlier = gluon.jit(waiting.wait_for_earlier)
_let_next_start = gluon.jit(waiting.let_next_start)
LOAD = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
"""Triton 3.9 renamed it. No constexpr: its text, with an address, would be in the cache's keys."""
PRODUCER_REGISTERS, CONSUMER_REGISTERS = gl.constexpr(40), gl.constexpr(232)


@gluon.jit
def _first_pixel(tile, tiles_h, tiles_w, BI: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr):
    """Image, row and column at which a box begins."""
    image = (tile // (tiles_w * tiles_h)) * BI
    return image, ((tile // tiles_w) % tiles_h) * BH, (tile % tiles_w) * BW


@gluon.jit
def _load_image(boxes, matrix, place, full, k, sizes, back, FLAT: gl.constexpr, TAPS: gl.constexpr,
                DOWNSAMPLE: gl.constexpr, JOINED: gl.constexpr, BK: gl.constexpr):  # fmt: skip
    """One consumer's pixels for step k of the sum."""
    x_box, x2_box = boxes
    blocks, C = sizes
    m0, i0, h0, w0 = place
    back_h, back_w = back
    if FLAT:
        if JOINED:
            if k < blocks:
                LOAD(x_box, [m0, k * BK], full, matrix)
            else:
                LOAD(x2_box, [m0, (k - blocks) * BK], full, matrix)
        else:
            LOAD(x_box, [m0, k * BK], full, matrix)
    else:
        tap = k // blocks
        c0 = k % blocks * BK
        if DOWNSAMPLE:
            # One row back is the second of the pair before.
            h = tap // TAPS + 1
            w = tap % TAPS + 1
            LOAD(x_box, [i0, h0 + h // 2 - 1, h % 2, w0 + w // 2 - 1, w % 2 * C + c0], full, matrix)
        else:
            LOAD(x_box, [i0, h0 + tap // TAPS - back_h, w0 + tap % TAPS - back_w, c0], full, matrix)


@gluon.jit
def _producer(boxes, weights, matrices, barriers, places, rows, steps, sizes, back,
              FLAT: gl.constexpr, TAPS: gl.constexpr, DOWNSAMPLE: gl.constexpr,
              JOINED: gl.constexpr,
              MC: gl.constexpr, BN: gl.constexpr, BX: gl.constexpr, BK: gl.constexpr,
              STAGES: gl.constexpr, DEPENDENT: gl.constexpr):  # fmt: skip
    """Fill the stages in turn, each once both consumers have left it."""
    _wait_for_earlier(DEPENDENT)
    b, bx = matrices[2], matrices[3]
    full, empty = barriers
    first, last = steps
    blocks, C = sizes
    SIZE: gl.constexpr = b.dtype.primitive_bitwidth // 8
    for k in range(first, last):
        turn = k - first
        i = turn % STAGES
        mbarrier.wait(empty.index(i), ((turn // STAGES) & 1) ^ 1)
        mbarrier.expect(full.index(i), (2 * MC + BN + BX) * BK * SIZE)
        for consumer in gl.static_range(2):
            _load_image(boxes, matrices[consumer].index(i), places[consumer], full.index(i), k,
                        sizes, back, FLAT, TAPS, DOWNSAMPLE, JOINED, BK)  # fmt: skip
        column = k // blocks * C + k % blocks * BK
        if JOINED:
            column = gl.where(k < blocks, k * BK, C + (k - blocks) * BK)
        LOAD(weights[0], [rows[0], column], full.index(i), b.index(i))
        if BX > 0:
            LOAD(weights[1], [rows[1], column], full.index(i), bx.index(i))
    _let_next_start(DEPENDENT)


@gluon.jit
def _store(acc, n0, place, ends, shape, phase, PHASES: gl.constexpr, FLAT: gl.constexpr,
           BH: gl.constexpr, BW: gl.constexpr, SCALED: gl.constexpr, HAS_BIAS: gl.constexpr,
           HAS_RESIDUAL: gl.constexpr, ACTIVATION: gl.constexpr):  # fmt: skip
    """Scale, bias, residual, activation; rounded once; written by rows of 16 bytes."""
    WIDTH: gl.constexpr = acc.shape[1]
    ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [4, 1], [1, 0])
    acc = gl.convert_layout(acc, ROWS)
    scale, bias, residual, out = ends
    images, H, W, N = shape
    m0, i0, h0, w0 = place
    phase_h, phase_w = phase
    row = gl.arange(0, acc.shape[0], layout=gl.SliceLayout(1, ROWS))
    column = n0 + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, ROWS))
    if FLAT:
        pixel = m0 + row
        inside = pixel < H
    else:
        w = w0 + row % BW
        h = h0 + (row // BW) % BH
        i = i0 + row // (BW * BH)
        inside = (w < W) & (h < H) & (i < images)
        pixel = (i * H * PHASES + h * PHASES + phase_h) * W * PHASES + w * PHASES + phase_w
    at = pixel.to(gl.int64)[:, None] * N + column[None, :]
    mask = inside[:, None] & (column < N)[None, :]
    if SCALED:
        acc *= gl.load(scale + column, mask=column < N, other=0.0)[None, :]
    if HAS_BIAS:
        acc += gl.load(bias + column, mask=column < N, other=0.0).to(gl.float32)[None, :]
    if HAS_RESIDUAL:
        acc += gl.load(residual + at, mask=mask, other=0.0).to(gl.float32)
    acc = _activated(acc, ACTIVATION)
    gl.store(out + at, acc.to(out.dtype.element_ty), mask=mask)


@gluon.jit
def _consumer(a, b, bx, barriers, steps, n0, place, ends, shape, phase, PHASES: gl.constexpr,
              FLAT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr, BN: gl.constexpr,
              BX: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, GEGLU: gl.constexpr,
              SCALED: gl.constexpr, HAS_BIAS: gl.constexpr, HAS_RESIDUAL: gl.constexpr,
              ACTIVATION: gl.constexpr, DEPENDENT: gl.constexpr):  # fmt: skip
    """The sum over all steps of one consumer's pixels by BN (and BX) columns, and its end."""
    _wait_for_earlier(DEPENDENT)  # a split without steps writes before any load has come
    full, empty = barriers
    first, last = steps
    X: gl.constexpr = BX if BX > 0 else 16
    MC: gl.constexpr = a.shape[1] if FLAT else a.shape[1] * BH * BW
    DEPTH: gl.constexpr = 256 // a.dtype.primitive_bitwidth
    SUM: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, DEPTH])
    SUM_X: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, X, DEPTH])
    acc = warpgroup_mma_init(gl.zeros((MC, BN), dtype=gl.float32, layout=SUM))
    ext = gl.zeros((MC, X), dtype=gl.float32, layout=SUM_X)
    if BX > 0:
        ext = warpgroup_mma_init(ext)
    for k in range(first, last):
        turn = k - first
        i = turn % STAGES
        mbarrier.wait(full.index(i), (turn // STAGES) & 1)
        tile = a.index(i) if FLAT else a.index(i).reshape([MC, BK])
        acc = warpgroup_mma(tile, b.index(i).permute((1, 0)), acc, is_async=True)
        if BX > 0:
            ext = warpgroup_mma(tile, bx.index(i).permute((1, 0)), ext, is_async=True)
            acc, ext = warpgroup_mma_wait(2, deps=[acc, ext])
            ext = warpgroup_mma_init(ext)
        else:
            acc = warpgroup_mma_wait(1, deps=[acc])
        acc = warpgroup_mma_init(acc)
        # The products of the step before are done: its stage may be filled again.
        mbarrier.arrive(empty.index((turn + STAGES - 1) % STAGES), count=1, pred=k > first)
    if BX > 0:
        acc, ext = warpgroup_mma_wait(0, deps=[acc, ext])
    else:
        acc = warpgroup_mma_wait(0, deps=[acc])
    if GEGLU:
        scale, bias, _, _ = ends
        N = shape[3]
        column = n0 + gl.arange(0, BN, layout=gl.SliceLayout(0, SUM))
        if SCALED:
            acc *= gl.load(scale + column, mask=column < N, other=0.0)[None, :]
            ext *= gl.load(scale + N + column, mask=column < N, other=0.0)[None, :]
        acc += gl.load(bias + column, mask=column < N, other=0.0).to(gl.float32)[None, :]
        ext += gl.load(bias + N + column, mask=column < N, other=0.0).to(gl.float32)[None, :]
        acc *= _gelu(ext)
    _store(acc, n0, place, ends, shape, phase, PHASES, FLAT, BH, BW, SCALED and not GEGLU,
           HAS_BIAS and not GEGLU, HAS_RESIDUAL, ACTIVATION)  # fmt: skip
    if BX > 0 and not GEGLU:
        _store(ext, n0 + BN, place, ends, shape, phase, PHASES, FLAT, BH, BW, SCALED, HAS_BIAS,
               HAS_RESIDUAL, ACTIVATION)  # fmt: skip


def _name(kernel: Any) -> str:
    """What it is called in a profile, where products in float8 are counted."""
    return "sdopt_product" + "_float8" * ("fp8" in kernel.signature["x_box"])


@gluon.jit(do_not_specialize=["images", "H", "W", "C", "C2", "splits"], repr=_name)
def sdopt_product(
    x_box, x2_box, w_box, wx_box, scale, bias, residual, out, images, H, W, C, C2, N, splits,
    TAPS: gl.constexpr, PHASES: gl.constexpr, FLAT: gl.constexpr, DOWNSAMPLE: gl.constexpr,
    JOINED: gl.constexpr, GEGLU: gl.constexpr, PARTIAL: gl.constexpr, BI: gl.constexpr,
    BH: gl.constexpr, BW: gl.constexpr, BN: gl.constexpr, BX: gl.constexpr, BK: gl.constexpr,
    STAGES: gl.constexpr, SCALED: gl.constexpr, HAS_BIAS: gl.constexpr,
    HAS_RESIDUAL: gl.constexpr, ACTIVATION: gl.constexpr, DEPENDENT: gl.constexpr = False,
):  # fmt: skip
    """What `kernels.sdopt_convolution` computes, and, of FLAT images of H rows, `matrix_product`.

    A program has two boxes of BI x BH x BW pixels, one below the other. `ends` are what a sum ends
    with, and `steps` which part of it is this program's. With GEGLU the BX = BN columns more are
    the gate, N rows of the weights further on.
    """
    split = gl.program_id(2) % splits
    phase = gl.program_id(2) // splits
    phases = (phase // PHASES, phase % PHASES)
    MC: gl.constexpr = BI * BH * BW
    tiles_h = gl.cdiv(H, BH)
    tiles_w = gl.cdiv(W, BW)
    pair = gl.program_id(0) * 2
    i0, h0, w0 = _first_pixel(pair, tiles_h, tiles_w, BI, BH, BW)
    i1, h1, w1 = _first_pixel(pair + 1, tiles_h, tiles_w, BI, BH, BW)
    place0 = (pair * MC, i0, h0, w0)
    place1 = (pair * MC + MC, i1, h1, w1)
    n0 = gl.program_id(1) * (BN if GEGLU else BN + BX)
    rows = (phase * N + n0, N + n0 if GEGLU else phase * N + n0 + BN)
    blocks = gl.cdiv(C, BK)
    total = TAPS * TAPS * blocks
    if JOINED:
        total += gl.cdiv(C2, BK)
    share = gl.cdiv(total, splits)
    first = split * share
    steps = (first, gl.minimum(first + share, total))
    if PARTIAL:
        out += split * (images * H * W * PHASES * PHASES).to(gl.int64) * N

    BOX: gl.constexpr = [STAGES] + x_box.block_shape  # noqa: RUF005
    kind: gl.constexpr = x_box.dtype
    a0 = gl.allocate_shared_memory(kind, BOX, x_box.layout)
    a1 = gl.allocate_shared_memory(kind, BOX, x_box.layout)
    b = gl.allocate_shared_memory(kind, [STAGES, BN, BK], w_box.layout)
    bx = b
    if BX > 0:
        bx = gl.allocate_shared_memory(kind, [STAGES, BX, BK], wx_box.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    fence_async_shared()

    ends = (scale, bias, residual, out)
    shape = (images, H, W, N)
    barriers = (full, empty)
    # Three taps reach one pixel back; two of them back or on, by phase.
    back = (1 - phases[0], 1 - phases[1])
    gl.warp_specialize(
        [
            (_consumer, (a0, b, bx, barriers, steps, n0, place0, ends, shape, phases, PHASES, FLAT,
                         BH, BW, BN, BX, BK, STAGES, GEGLU, SCALED, HAS_BIAS, HAS_RESIDUAL,
                         ACTIVATION, DEPENDENT)),
            (_consumer, (a1, b, bx, barriers, steps, n0, place1, ends, shape, phases, PHASES, FLAT,
                         BH, BW, BN, BX, BK, STAGES, GEGLU, SCALED, HAS_BIAS, HAS_RESIDUAL,
                         ACTIVATION, DEPENDENT)),
            (_producer, ((x_box, x2_box), (w_box, wx_box), (a0, a1, b, bx), barriers,
                         (place0, place1), rows, steps, (blocks, C), back, FLAT, TAPS, DOWNSAMPLE,
                         JOINED, MC, BN, BX, BK, STAGES, DEPENDENT)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
