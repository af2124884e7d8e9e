"""Attention among an image's own tokens for Hopper, in Gluon: loads, products and softmax overlap.

One warp loads keys and values through the tensor memory accelerator (the producer). Two or three
warp groups (the consumers) have BM tokens each. A consumer multiplies the next keys while it
exponentiates the scores of the last ones, and its exponentials overlap with another one's products
(Shah et al. 2024, https://arxiv.org/abs/2407.08608). Heads of 40, 80 and 160 entries are multiplied
as 32 + 16, 64 + 16 and 128 + 32: the matrix unit takes no other widths from Gluon, and padded to
the next power of 2 they cost more.

Weights go to the matrix unit through registers, which nothing may write before a wait; each wait
names them as what it keeps alive, and `sdopt.engine.machine_code` proves it of each tile.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from sdopt.engine import waiting
from sdopt.engine.specialized import LOAD

_wait_for_earlier = gluon.jit(waiting.wait_for_earlier)
_let_next_start = gluon.jit(waiting.let_next_start)
PRODUCER_REGISTERS = gl.constexpr(24)
CUBIC = ("0f3f7ffb49", "0f3f31798d", "0f3e786f0d", "0f3d61fbb0")
"""2^f for f from -1/2 to 1/2 to 7.5e-5 of itself, by Remez' algorithm; float16 keeps 4.9e-4."""


def _powers(count: int) -> str:
    """PTX of `count` powers of 2, the last one without the special-function unit.

    It takes x apart as n + f and adds n to the exponent of the cubic in f, as FlashAttention-4 has
    it. What is too small for float32 becomes 2^-126, for which float16 has no place.
    """
    lines = [f"ex2.approx.ftz.f32 ${i}, ${count + i};" for i in range(count - 1)]
    c0, c1, c2, c3 = CUBIC
    lines.append(
        "{ .reg .f32 x, r, n, p; .reg .b32 e, m;"
        f"max.NaN.ftz.f32 x, ${2 * count - 1}, 0fC2FC0000;"
        "add.ftz.f32 r, x, 0f4B400000;"  # 1.5 * 2^23: the last bits are x as a whole number
        "sub.ftz.f32 n, r, 0f4B400000;"
        "sub.ftz.f32 x, x, n;"
        f"mov.f32 p, {c3};"
        f"fma.rn.ftz.f32 p, p, x, {c2}; fma.rn.ftz.f32 p, p, x, {c1}; fma.rn.ftz.f32 p, p, x, {c0};"
        "mov.b32 e, r; shl.b32 e, e, 23; mov.b32 m, p; add.s32 e, e, m;"
        f"mov.b32 ${count - 1}, e; }}"
    )
    return "\n".join(lines)


EIGHT, SIXTEEN = gl.constexpr(_powers(8)), gl.constexpr(_powers(16))
EIGHT_PLACES = gl.constexpr(",".join(["=f"] * 8 + ["f"] * 8))
SIXTEEN_PLACES = gl.constexpr(",".join(["=f"] * 16 + ["f"] * 16))
TWO_CONSUMERS_REGISTERS, THREE_CONSUMERS_REGISTERS = gl.constexpr(240), gl.constexpr(160)


@gluon.jit
def _place(tile, blocks, HEADS: gl.constexpr):
    """Block of tokens, head and image of a tile; those of one head follow each other."""
    return tile % blocks, tile // blocks % HEADS, tile // (blocks * HEADS)


@gluon.jit
def _ring(STAGES: gl.constexpr, CONSUMERS: gl.constexpr):
    """Barriers that say of each stage that it is full, and that all consumers have left it."""
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=CONSUMERS)
    return full, empty


@gluon.jit
def _begun(ring, turn, BYTES: gl.constexpr, STAGES: gl.constexpr):
    """The barrier of a turn's stage, which waits for so many bytes, once all consumers left it."""
    full, empty = ring
    i = turn % STAGES
    mbarrier.wait(empty.index(i), ((turn // STAGES) & 1) ^ 1)
    mbarrier.expect(full.index(i), BYTES)
    return full.index(i)


@gluon.jit
def _load(boxes, parts, full, i, row, head, WIDTH: gl.constexpr, EXTRA: gl.constexpr):
    """A head's entries of some rows into place i; zeros beyond the last entry."""
    LOAD(boxes[0], [row, head, 0], full, parts[0].index(i))
    if EXTRA > 0:
        LOAD(boxes[1], [row, head, WIDTH], full, parts[1].index(i))


@gluon.jit
def _producer(q_boxes, k_boxes, v_boxes, qs, ks, vs, rings, sizes, HEADS: gl.constexpr,
              WIDTH: gl.constexpr, EXTRA: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
              CONSUMERS: gl.constexpr, STAGES: gl.constexpr, DEPENDENT: gl.constexpr):  # fmt: skip
    """All queries, keys and values of this program's tiles."""
    _wait_for_earlier(DEPENDENT)
    q_ring, k_ring, v_ring = rings
    tokens, keys, q_images, blocks, tiles = sizes
    ROW: gl.constexpr = (WIDTH + EXTRA) * 2
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        block, head, image = _place(tile, blocks, HEADS)
        number = tile // gl.num_programs(0)
        row = image % q_images * tokens + block * (CONSUMERS * BM)
        full = _begun(q_ring, number, CONSUMERS * BM * ROW, 2)
        for one in gl.static_range(CONSUMERS):
            _load(q_boxes, qs, full, number % 2 * CONSUMERS + one, row + one * BM, head, WIDTH,
                  EXTRA)  # fmt: skip
        turn = number * (keys // BN)
        for start in range(0, keys, BN):
            row = image * keys + start
            i = turn % STAGES
            full = _begun(k_ring, turn, BN * ROW, STAGES)
            _load(k_boxes, ks, full, i, row, head, WIDTH, EXTRA)
            full = _begun(v_ring, turn, BN * ROW, STAGES)
            _load(v_boxes, vs, full, i, row, head, WIDTH, EXTRA)
            turn += 1
    _let_next_start(DEPENDENT)


@gluon.jit
def _store(out, acc, at, own_row, first: gl.constexpr, SIZE: gl.constexpr):
    """Some entries of a consumer's tokens, by 16 bytes."""
    ROWS: gl.constexpr = acc.shape[0]
    WIDE: gl.constexpr = acc.shape[1]
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDE, WIDE // 8], [4, 1], [1, 0])
    acc = gl.convert_layout(acc.to(out.dtype.element_ty), LAYOUT)
    row = gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    entry = first + gl.arange(0, WIDE, layout=gl.SliceLayout(0, LAYOUT))
    mask = (row < own_row)[:, None] & (entry < SIZE)[None, :]
    gl.store(out + at[0] + row.to(gl.int64)[:, None] * at[1] + entry[None, :], acc, mask=mask)


@gluon.jit
def _matrix(part, i):
    """Place i, which is (rows, 1, entries), as a matrix."""
    ROWS: gl.constexpr = part.shape[1]
    WIDE: gl.constexpr = part.shape[3]
    return part.index(i).reshape([ROWS, WIDE])


@gluon.jit
def _scores(qs, ks, full, turn, BN: gl.constexpr, EXTRA: gl.constexpr, STAGES: gl.constexpr):
    """Begin to multiply the queries by the keys of a turn."""
    i = turn % STAGES
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    mbarrier.wait(full.index(i), (turn // STAGES) & 1)
    BM: gl.constexpr = qs[0].shape[0]
    score = gl.zeros((BM, BN), dtype=gl.float32, layout=SCORES)
    key = _matrix(ks[0], i).permute((1, 0))
    score = warpgroup_mma(qs[0], key, score, use_acc=False, is_async=True)
    if EXTRA > 0:
        score = warpgroup_mma(qs[1], _matrix(ks[1], i).permute((1, 0)), score, is_async=True)
    return score


@gluon.jit
def _power(x, POLYNOMIAL: gl.constexpr):
    """2^x of numbers up to 0; where POLYNOMIAL is 8 or 16 every so many-th by CUBIC."""
    if POLYNOMIAL == 8:
        y = gl.inline_asm_elementwise(
            EIGHT, EIGHT_PLACES, [x], dtype=gl.float32, is_pure=True, pack=8
        )
    elif POLYNOMIAL == 16:
        y = gl.inline_asm_elementwise(
            SIXTEEN, SIXTEEN_PLACES, [x], dtype=gl.float32, is_pure=True, pack=16
        )
    else:
        y = gl.exp2(x)
    return y


@gluon.jit
def _higher(score, highest, scale):
    """The highest of all scores so far."""
    return gl.maximum(highest, gl.max(score, 1) * scale)


@gluon.jit
def _softened(score, highest, higher, total, scale, POLYNOMIAL: gl.constexpr):
    """Weights by exponentials, their sum so far, and by what earlier ones shrink."""
    weight = _power(score * scale - higher[:, None], POLYNOMIAL)
    shrink = gl.exp2(highest - higher)
    return weight, total * shrink + gl.sum(weight, 1), shrink


@gluon.jit
def _weighted(weight, acc, ext, EXTRA: gl.constexpr, KIND: gl.constexpr):
    """Weights as the matrix unit reads them, for each part of the sums."""
    weight = weight.to(KIND)
    MAIN: gl.constexpr = gl.DotOperandLayout(0, acc.type.layout, 2)
    MORE: gl.constexpr = gl.DotOperandLayout(0, ext.type.layout, 2)
    main = gl.convert_layout(weight, MAIN)
    more = main
    if EXTRA > 0:
        more = gl.convert_layout(weight, MORE)
    return main, more


@gluon.jit
def _summed(weights, vs, full, turn, acc, ext, EXTRA: gl.constexpr, STAGES: gl.constexpr):
    """Begin to add the weighted values of a turn."""
    i = turn % STAGES
    mbarrier.wait(full.index(i), (turn // STAGES) & 1)
    acc = warpgroup_mma(weights[0], _matrix(vs[0], i), warpgroup_mma_init(acc), is_async=True)
    if EXTRA > 0:
        ext = warpgroup_mma(weights[1], _matrix(vs[1], i), warpgroup_mma_init(ext), is_async=True)
    return acc, ext


@gluon.jit
def _settled(acc, ext, weights, PENDING: gl.constexpr, EXTRA: gl.constexpr):
    """The sums, once all but PENDING products are done; until here nothing writes the weights."""
    if EXTRA > 0:
        acc, ext, _, _ = warpgroup_mma_wait(PENDING, deps=[acc, ext, weights[0], weights[1]])
    else:
        acc, _ = warpgroup_mma_wait(PENDING, deps=[acc, weights[0]])
    return acc, ext


@gluon.jit
def _finished(score, acc, ext, EXTRA: gl.constexpr):
    """Scores when all products are done, and the sums, which nothing touches before."""
    if EXTRA > 0:
        score, acc, ext = warpgroup_mma_wait(0, deps=[score, acc, ext])
    else:
        score, acc = warpgroup_mma_wait(0, deps=[score, acc])
    return score, acc, ext


@gluon.jit
def _shrunk(acc, ext, factor, EXTRA: gl.constexpr):
    """Each token's sums by its own factor."""
    acc = acc * gl.convert_layout(factor, gl.SliceLayout(1, acc.type.layout))[:, None]
    if EXTRA > 0:
        ext = ext * gl.convert_layout(factor, gl.SliceLayout(1, ext.type.layout))[:, None]
    return acc, ext


@gluon.jit
def _in_turn(qs, ks, vs, rings, turn, blocks, sums, scale, EXTRA: gl.constexpr,
             BN: gl.constexpr, POLYNOMIAL: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """The sums of one block of keys are multiplied while the next one's weights are made."""
    _, k_ring, v_ring = rings
    k_full, k_empty = k_ring
    v_full, v_empty = v_ring
    acc, ext, highest, total = sums
    PENDING: gl.constexpr = 2 if EXTRA > 0 else 1
    score = warpgroup_mma_wait(0, deps=[_scores(qs, ks, k_full, turn, BN, EXTRA, STAGES)])
    mbarrier.arrive(k_empty.index(turn % STAGES), count=1)
    higher = _higher(score, highest, scale)
    weight, total, _ = _softened(score, highest, higher, total, scale, POLYNOMIAL)
    weights = _weighted(weight, acc, ext, EXTRA, vs[0].dtype)
    last = turn + blocks - 1
    for now in range(turn, last):
        score = _scores(qs, ks, k_full, now + 1, BN, EXTRA, STAGES)
        acc, ext = _summed(weights, vs, v_full, now, acc, ext, EXTRA, STAGES)
        score = warpgroup_mma_wait(PENDING, deps=[score])
        mbarrier.arrive(k_empty.index((now + 1) % STAGES), count=1)
        highest = higher
        higher = _higher(score, highest, scale)
        weight, total, shrink = _softened(score, highest, higher, total, scale, POLYNOMIAL)
        acc, ext = _settled(acc, ext, weights, 0, EXTRA)
        mbarrier.arrive(v_empty.index(now % STAGES), count=1)
        acc, ext = _shrunk(acc, ext, shrink, EXTRA)
        weights = _weighted(weight, acc, ext, EXTRA, vs[0].dtype)
    acc, ext = _summed(weights, vs, v_full, last, acc, ext, EXTRA, STAGES)
    acc, ext = _settled(acc, ext, weights, 0, EXTRA)
    mbarrier.arrive(v_empty.index(last % STAGES), count=1)
    return acc, ext, total


@gluon.jit
def _step(score, acc, ext, weights, highest, total, qs, ks, vs, rings, turn, scale,
          LAST: gl.constexpr, EXTRA: gl.constexpr, BN: gl.constexpr,
          POLYNOMIAL: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """The weights of one block of keys, while the last sums and the next scores are multiplied.

    Nothing is under way at its ends: ptxas takes products one by one where anything else touches
    sums or weights of one that is.
    """
    _, k_ring, v_ring = rings
    k_full, k_empty = k_ring
    v_full, v_empty = v_ring
    PENDING: gl.constexpr = 0 if LAST else 2 if EXTRA > 0 else 1
    acc, ext = _summed(weights, vs, v_full, turn - 1, acc, ext, EXTRA, STAGES)
    following = score
    if not LAST:
        following = _scores(qs, ks, k_full, turn + 1, BN, EXTRA, STAGES)
    higher = _higher(score, highest, scale)
    acc, ext = _settled(acc, ext, weights, PENDING, EXTRA)  # early: the weights' registers
    mbarrier.arrive(v_empty.index((turn - 1) % STAGES), count=1)
    weight, total, shrink = _softened(score, highest, higher, total, scale, POLYNOMIAL)
    if not LAST:
        following, acc, ext = _finished(following, acc, ext, EXTRA)
        mbarrier.arrive(k_empty.index((turn + 1) % STAGES), count=1)
    acc, ext = _shrunk(acc, ext, shrink, EXTRA)
    weights = _weighted(weight, acc, ext, EXTRA, vs[0].dtype)
    return following, acc, ext, weights, higher, total


@gluon.jit
def _ahead(qs, ks, vs, rings, turn, blocks, sums, scale, EXTRA: gl.constexpr,
           BN: gl.constexpr, POLYNOMIAL: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Scores are a block of keys ahead; two blocks a turn of the loop, so that none is moved.

    The blocks are even in number.
    """
    _, k_ring, v_ring = rings
    k_full, k_empty = k_ring
    v_full, v_empty = v_ring
    acc, ext, highest, total = sums
    score = warpgroup_mma_wait(0, deps=[_scores(qs, ks, k_full, turn, BN, EXTRA, STAGES)])
    mbarrier.arrive(k_empty.index(turn % STAGES), count=1)
    other = _scores(qs, ks, k_full, turn + 1, BN, EXTRA, STAGES)
    higher = _higher(score, highest, scale)
    weight, total, _ = _softened(score, highest, higher, total, scale, POLYNOMIAL)
    other = warpgroup_mma_wait(0, deps=[other])
    mbarrier.arrive(k_empty.index((turn + 1) % STAGES), count=1)
    weights = _weighted(weight, acc, ext, EXTRA, vs[0].dtype)
    last = turn + blocks - 1
    for now in range(turn + 1, last, 2):
        score, acc, ext, weights, higher, total = _step(
            other, acc, ext, weights, higher, total, qs, ks, vs, rings, now, scale, False,
            EXTRA, BN, POLYNOMIAL, STAGES,
        )  # fmt: skip
        other, acc, ext, weights, higher, total = _step(
            score, acc, ext, weights, higher, total, qs, ks, vs, rings, now + 1, scale, False,
            EXTRA, BN, POLYNOMIAL, STAGES,
        )  # fmt: skip
    _, acc, ext, weights, _, total = _step(
        other, acc, ext, weights, higher, total, qs, ks, vs, rings, last, scale, True, EXTRA,
        BN, POLYNOMIAL, STAGES,
    )  # fmt: skip
    acc, ext = _summed(weights, vs, v_full, last, acc, ext, EXTRA, STAGES)
    acc, ext = _settled(acc, ext, weights, 0, EXTRA)
    mbarrier.arrive(v_empty.index(last % STAGES), count=1)
    return acc, ext, total


@gluon.jit
def _consumer(qs, ks, vs, rings, out, sizes, scale, NUMBER: gl.constexpr, CONSUMERS: gl.constexpr,
              HEADS: gl.constexpr, SIZE: gl.constexpr, EXTRA: gl.constexpr, BN: gl.constexpr,
              AHEAD: gl.constexpr, POLYNOMIAL: gl.constexpr, STAGES: gl.constexpr,
              DEPENDENT: gl.constexpr):  # fmt: skip
    """The attention of one consumer's tokens of each of this program's tiles."""
    _wait_for_earlier(DEPENDENT)
    tokens, keys, _, blocks, tiles = sizes
    q_full, q_empty = rings[0]
    BM: gl.constexpr = qs[0].shape[1]
    WIDTH: gl.constexpr = qs[0].shape[3]
    MORE: gl.constexpr = EXTRA if EXTRA > 0 else 16
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    EXTRAS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, MORE, 16])
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        block, head, image = _place(tile, blocks, HEADS)
        number = tile // gl.num_programs(0)
        place = number % 2 * CONSUMERS + NUMBER
        own = (_matrix(qs[0], place), _matrix(qs[1], place))
        acc = gl.zeros((BM, WIDTH), dtype=gl.float32, layout=SUMS)
        ext = gl.zeros((BM, MORE), dtype=gl.float32, layout=EXTRAS)
        highest = gl.full((BM,), float("-inf"), dtype=gl.float32, layout=gl.SliceLayout(1, SCORES))
        total = gl.zeros((BM,), dtype=gl.float32, layout=gl.SliceLayout(1, SCORES))
        sums = (acc, ext, highest, total)
        turn = number * (keys // BN)
        mbarrier.wait(q_full.index(number % 2), (number // 2) & 1)
        if AHEAD:
            acc, ext, total = _ahead(own, ks, vs, rings, turn, keys // BN, sums, scale, EXTRA, BN,
                                     POLYNOMIAL, STAGES)  # fmt: skip
        else:
            acc, ext, total = _in_turn(own, ks, vs, rings, turn, keys // BN, sums, scale, EXTRA,
                                       BN, POLYNOMIAL, STAGES)  # fmt: skip
        mbarrier.arrive(q_empty.index(number % 2), count=1)
        acc, ext = _shrunk(acc, ext, 1.0 / total, EXTRA)
        row = (block * CONSUMERS + NUMBER) * BM
        width: gl.constexpr = HEADS * SIZE
        at = ((image * tokens + row).to(gl.int64) * width + head * SIZE, width)
        _store(out, acc, at, tokens - row, 0, SIZE)
        if EXTRA > 0:
            _store(out, ext, at, tokens - row, WIDTH, SIZE)


@gluon.jit(do_not_specialize=["tokens", "keys", "q_images", "blocks", "tiles"])
def sdopt_attention_specialized(
    q_box, q_extra_box, k_box, k_extra_box, v_box, v_extra_box, out, tokens, keys, q_images,
    blocks, tiles, scale, HEADS: gl.constexpr, SIZE: gl.constexpr, EXTRA: gl.constexpr,
    CONSUMERS: gl.constexpr, AHEAD: gl.constexpr, POLYNOMIAL: gl.constexpr, STAGES: gl.constexpr,
    DEPENDENT: gl.constexpr = False,
):  # fmt: skip
    """What `kernels.sdopt_attention` computes, of keys that are a multiple of a box's.

    Boxes are (rows, 1, entries) of (rows, heads, SIZE), zeros beyond SIZE; the first of each pair
    begins at a head's first entry, and the second, of EXTRA entries, behind the first one's last. A
    program has `tiles` of CONSUMERS boxes of the query in turn; `blocks` of them make one head's.
    """
    kind: gl.constexpr = k_box.dtype
    BM: gl.constexpr = q_box.block_shape[0]
    BN: gl.constexpr = k_box.block_shape[0]
    WIDTH: gl.constexpr = q_box.block_shape[2]
    q0 = gl.allocate_shared_memory(kind, [2 * CONSUMERS, BM, 1, WIDTH], q_box.layout)
    k0 = gl.allocate_shared_memory(kind, [STAGES, BN, 1, WIDTH], k_box.layout)
    v0 = gl.allocate_shared_memory(kind, [STAGES, BN, 1, WIDTH], v_box.layout)
    q1, k1, v1 = q0, k0, v0
    if EXTRA > 0:
        q1 = gl.allocate_shared_memory(kind, [2 * CONSUMERS, BM, 1, EXTRA], q_extra_box.layout)
        k1 = gl.allocate_shared_memory(kind, [STAGES, BN, 1, EXTRA], k_extra_box.layout)
        v1 = gl.allocate_shared_memory(kind, [STAGES, BN, 1, EXTRA], v_extra_box.layout)
    q_ring, k_ring, v_ring = _ring(2, CONSUMERS), _ring(STAGES, CONSUMERS), _ring(STAGES, CONSUMERS)
    fence_async_shared()

    rings = (q_ring, k_ring, v_ring)
    sizes = (tokens, keys, q_images, blocks, tiles)
    qs, ks, vs = (q0, q1), (k0, k1), (v0, v1)
    if CONSUMERS == 3:
        gl.warp_specialize(
            [
                (_consumer, (qs, ks, vs, rings, out, sizes, scale, 0, CONSUMERS, HEADS, SIZE,
                             EXTRA, BN, AHEAD, POLYNOMIAL, STAGES, DEPENDENT)),
                (_consumer, (qs, ks, vs, rings, out, sizes, scale, 1, CONSUMERS, HEADS, SIZE,
                             EXTRA, BN, AHEAD, POLYNOMIAL, STAGES, DEPENDENT)),
                (_consumer, (qs, ks, vs, rings, out, sizes, scale, 2, CONSUMERS, HEADS, SIZE,
                             EXTRA, BN, AHEAD, POLYNOMIAL, STAGES, DEPENDENT)),
                (_producer, ((q_box, q_extra_box), (k_box, k_extra_box), (v_box, v_extra_box), qs,
                             ks, vs, rings, sizes, HEADS, WIDTH, EXTRA, BM, BN, CONSUMERS, STAGES,
                             DEPENDENT)),
            ],
            [4, 4, 1],
            [THREE_CONSUMERS_REGISTERS, THREE_CONSUMERS_REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_consumer, (qs, ks, vs, rings, out, sizes, scale, 0, CONSUMERS, HEADS, SIZE,
                             EXTRA, BN, AHEAD, POLYNOMIAL, STAGES, DEPENDENT)),
                (_consumer, (qs, ks, vs, rings, out, sizes, scale, 1, CONSUMERS, HEADS, SIZE,
                             EXTRA, BN, AHEAD, POLYNOMIAL, STAGES, DEPENDENT)),
                (_producer, ((q_box, q_extra_box), (k_box, k_extra_box), (v_box, v_extra_box), qs,
                             ks, vs, rings, sizes, HEADS, WIDTH, EXTRA, BM, BN, CONSUMERS, STAGES,
                             DEPENDENT)),
            ],
            [4, 1],
            [TWO_CONSUMERS_REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
