"""GEGLU for Hopper whose weights stay in shared memory while rows stream past them, in Gluon.

A program keeps 2 * BN rows of the weights, for the whole sum, and takes every so many of the boxes
of BM rows of x. One warp loads x through the tensor memory accelerator, one the weights, and two
warp groups multiply: they take boxes in turn, and one ends its sums (bias, GELU, store) while the
other has the matrix unit. No operand of it passes through registers (see `specialized`).
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

from sdopt.engine import epilogue, specialized, waiting

_gelu = gluon.jit(epilogue.gelu)
_wait_for_earlier = gluon.jit(waiting.wait_for_earlier)
_let_next_start = gluon.jit(waiting.let_next_start)
LOAD = specialized.LOAD
LOADER_REGISTERS, CONSUMER_REGISTERS = gl.constexpr(40), gl.constexpr(232)


@gluon.constexpr_function
def _by_quads(rows, columns):
    """How a result is held that is written by 16 bytes: 4 threads have 32 columns of a row.

    A warp has the same rows as in a sum, so that only threads of a warp exchange anything.
    """
    more = [[0, 1 << bit] for bit in range(5, columns.bit_length() - 1)]
    lower = [[1 << bit, 0] for bit in range(6, rows.bit_length() - 1)]
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 1], [0, 2], [0, 4], *more, [8, 0], *lower],
        lane_bases=[[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[16, 0], [32, 0]],
        block_bases=[],
        shape=[rows, columns],
    )


@gluon.jit
def _keep_weights(box, kept, loaded, n0, DEPENDENT: gl.constexpr):
    """Load all of a program's weights once, values and gates of BK entries of the sum together."""
    _wait_for_earlier(DEPENDENT)
    STEPS: gl.constexpr = kept.shape[0]
    BK: gl.constexpr = kept.shape[3]
    BYTES: gl.constexpr = 2 * kept.shape[2] * BK * kept.dtype.primitive_bitwidth // 8
    for k in range(STEPS):
        mbarrier.expect(loaded.index(k), BYTES)
        LOAD(box, [0, n0, k * BK], loaded.index(k), kept.index(k))


@gluon.jit
def _producer(box, x, full, empty, tiles, STEPS: gl.constexpr, DEPENDENT: gl.constexpr):
    """Fill the stages in turn with the boxes of x, each once its consumer has left it."""
    _wait_for_earlier(DEPENDENT)
    first, last, stride = tiles
    STAGES: gl.constexpr = x.shape[0]
    BM: gl.constexpr = x.shape[1]
    BK: gl.constexpr = x.shape[2]
    BYTES: gl.constexpr = BM * BK * x.dtype.primitive_bitwidth // 8
    turn = 0
    for tile in range(first, last, stride):
        for k in range(STEPS):
            i = turn % STAGES
            mbarrier.wait(empty.index(i), ((turn // STAGES) & 1) ^ 1)
            mbarrier.expect(full.index(i), BYTES)
            LOAD(box, [tile * BM, k * BK], full.index(i), x.index(i))
            turn += 1
    _let_next_start(DEPENDENT)


@gluon.jit
def _store(value, out, m0, n0, rows, N):
    """Rounded once, then exchanged between the 4 threads of a row, which write 16 bytes each."""
    ROUNDED: gl.constexpr = _by_quads(value.shape[0], value.shape[1])
    value = gl.convert_layout(value.to(out.dtype.element_ty), ROUNDED)
    row = m0 + gl.arange(0, value.shape[0], layout=gl.SliceLayout(1, ROUNDED))
    column = n0 + gl.arange(0, value.shape[1], layout=gl.SliceLayout(0, ROUNDED))
    at = row.to(gl.int64)[:, None] * N + column[None, :]
    gl.store(out + at, value, mask=(row < rows)[:, None])


@gluon.jit
def _consumer(x, kept, barriers, turns, tiles, bias, out, n0, rows, N, WHICH: gl.constexpr,
              DEPENDENT: gl.constexpr):  # fmt: skip
    """Every second box of the program's: its products by the weights, and their end.

    The products of a box begin once the other consumer's of the box before are all under way.
    """
    _wait_for_earlier(DEPENDENT)
    full, empty, loaded = barriers
    first, last, stride = tiles
    STAGES: gl.constexpr = x.shape[0]
    BM: gl.constexpr = x.shape[1]
    STEPS: gl.constexpr = kept.shape[0]
    BN: gl.constexpr = kept.shape[2]
    BK: gl.constexpr = kept.shape[3]
    # Steps under way: each takes the matrix unit 512 cycles, or 256 of small boxes.
    BEHIND: gl.constexpr = 2 if BM * BN < 64 * 128 and STEPS > 1 else 1
    SUM: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 2 * BN, 16])
    HALF: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    column = n0 + gl.arange(0, BN, layout=gl.SliceLayout(0, HALF))
    value_bias = gl.load(bias + column)
    gate_bias = gl.load(bias + N + column)
    start = first + WHICH * stride
    turn = WHICH * STEPS
    parity = 1 - WHICH  # so that the first consumer's first box, which has none before it, begins
    for tile in range(start, last, 2 * stride):
        acc = warpgroup_mma_init(gl.zeros((BM, 2 * BN), dtype=gl.float32, layout=SUM))
        mbarrier.wait(turns.index(WHICH), parity)
        parity ^= 1
        for k in range(STEPS):
            i = turn % STAGES
            mbarrier.wait(loaded.index(k), 0, pred=tile == start)
            mbarrier.wait(full.index(i), (turn // STAGES) & 1)
            weight = kept.index(k).reshape([2 * BN, BK]).permute((1, 0))
            acc = warpgroup_mma(x.index(i), weight, acc, use_acc=k > 0, is_async=True)
            acc = warpgroup_mma_init(warpgroup_mma_wait(BEHIND, deps=[acc]))
            # The products of so many steps before are done: their stage may be filled again.
            done = (turn + STAGES - BEHIND) % STAGES
            mbarrier.arrive(empty.index(done), count=1, pred=k >= BEHIND)
            turn += 1
        mbarrier.arrive(turns.index(1 - WHICH), count=1)
        acc = warpgroup_mma_wait(0, deps=[acc])
        for step in gl.static_range(BEHIND):
            done = (turn + STAGES - BEHIND + step) % STAGES
            mbarrier.arrive(empty.index(done), count=1)
        value, gate = acc.reshape((BM, 2, BN)).permute((0, 2, 1)).split()
        value = gl.convert_layout(value, HALF, assert_trivial=True)
        gate = gl.convert_layout(gate, HALF, assert_trivial=True)
        value += value_bias.to(gl.float32)[None, :]
        gate += gate_bias.to(gl.float32)[None, :]
        _store(value * _gelu(gate), out, tile * BM, n0, rows, N)
        turn += STEPS


@gluon.jit(do_not_specialize=["rows"])
def sdopt_geglu(
    x_box, w_box, bias, out, rows, N, BN: gl.constexpr, BK: gl.constexpr, STEPS: gl.constexpr,
    STAGES: gl.constexpr, DEPENDENT: gl.constexpr = False,
):  # fmt: skip
    """(x Wv^T + bv) * GELU(x Wg^T + bg) of x (rows, K) and weights (2, N, K), K = STEPS * BK.

    Of the grid (N / BN, programs), a program has BN columns and every so many of the boxes of rows.
    """
    n0 = gl.program_id(0) * BN
    BM: gl.constexpr = x_box.block_shape[0]
    tiles = (gl.program_id(1), gl.cdiv(rows, BM), gl.num_programs(1))
    kept = gl.allocate_shared_memory(w_box.dtype, [STEPS, 2, BN, BK], w_box.layout)
    x = gl.allocate_shared_memory(x_box.dtype, [STAGES, BM, BK], x_box.layout)
    loaded = gl.allocate_shared_memory(gl.int64, [STEPS, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for k in gl.static_range(STEPS):
        mbarrier.init(loaded.index(k), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    for consumer in gl.static_range(2):
        mbarrier.init(turns.index(consumer), count=1)
    fence_async_shared()

    barriers = (full, empty, loaded)
    gl.warp_specialize(
        [
            (_consumer, (x, kept, barriers, turns, tiles, bias, out, n0, rows, N, 0, DEPENDENT)),
            (_consumer, (x, kept, barriers, turns, tiles, bias, out, n0, rows, N, 1, DEPENDENT)),
            (_producer, (x_box, x, full, empty, tiles, STEPS, DEPENDENT)),
            (_keep_weights, (w_box, kept, loaded, n0, DEPENDENT)),
        ],
        [4, 1, 1],
        [CONSUMER_REGISTERS, LOADER_REGISTERS, LOADER_REGISTERS],
    )  # fmt: skip
