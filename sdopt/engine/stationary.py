"""Products for Hopper whose weights stay in shared memory while rows stream past them, in Gluon.

A program keeps some rows of the weights, for the whole sum, and takes every so many of the boxes
of BM rows of x. One warp loads x through the tensor memory accelerator, one the weights, and two
warp groups multiply: they take boxes in turn, and one ends its sums (bias, GELU or residual, store)
while the other has the matrix unit. No operand of it passes through registers (see `specialized`).
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
def _keep_weights(boxes, kept, loaded, n0, BX: gl.constexpr, GEGLU: gl.constexpr,
                  DEPENDENT: gl.constexpr):  # fmt: skip
    """Load all of a program's weights once, every column of BK entries of the sum together."""
    _wait_for_earlier(DEPENDENT)
    main, more = kept
    STEPS: gl.constexpr = main.shape[0]
    BN: gl.constexpr = main.shape[-2]
    BK: gl.constexpr = main.shape[-1]
    ACROSS: gl.constexpr = 2 * BN if GEGLU else BN + BX
    BYTES: gl.constexpr = ACROSS * BK * main.dtype.primitive_bitwidth // 8
    for k in range(STEPS):
        mbarrier.expect(loaded.index(k), BYTES)
        if GEGLU:
            LOAD(boxes[0], [0, n0, k * BK], loaded.index(k), main.index(k))
        else:
            LOAD(boxes[0], [n0, k * BK], loaded.index(k), main.index(k))
        if BX > 0:
            LOAD(boxes[1], [n0 + BN, k * BK], loaded.index(k), more.index(k))


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
def _places(m0, n0, rows, N, BM: gl.constexpr, WIDTH: gl.constexpr):
    """Where a box's entries are in the result, as they are written, and which rows there are."""
    QUADS: gl.constexpr = _by_quads(BM, WIDTH)
    row = m0 + gl.arange(0, BM, layout=gl.SliceLayout(1, QUADS))
    column = n0 + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, QUADS))
    return row.to(gl.int64)[:, None] * N + column[None, :], (row < rows)[:, None]


@gluon.jit
def _store(value, out, m0, n0, rows, N):
    """Rounded once, then exchanged between the 4 threads of a row, which write 16 bytes each."""
    QUADS: gl.constexpr = _by_quads(value.shape[0], value.shape[1])
    value = gl.convert_layout(value.to(out.dtype.element_ty), QUADS)
    at, inside = _places(m0, n0, rows, N, value.shape[0], value.shape[1])
    gl.store(out + at, value, mask=inside)


@gluon.jit
def _read(residual, m0, n0, rows, N, BM: gl.constexpr, WIDTH: gl.constexpr):
    """A box of the residual, as the result is written."""
    at, inside = _places(m0, n0, rows, N, BM, WIDTH)
    return gl.load(residual + at, mask=inside, other=0.0)


@gluon.jit
def _read_bias(bias, column, HAS_BIAS: gl.constexpr):
    """The bias of these columns, or one that nobody adds."""
    return gl.load(bias + column) if HAS_BIAS else column


@gluon.jit
def _ended(acc, bias, residual, HAS_BIAS: gl.constexpr, HAS_RESIDUAL: gl.constexpr):
    """The sum with its bias and its residual, in float32."""
    if HAS_BIAS:
        acc += bias.to(gl.float32)[None, :]
    if HAS_RESIDUAL:
        acc += gl.convert_layout(residual, acc.type.layout).to(gl.float32)
    return acc


@gluon.jit
def _consumer(x, kept, barriers, turns, tiles, ends, n0, rows, N, WHICH: gl.constexpr,
              BX: gl.constexpr, GEGLU: gl.constexpr, HAS_BIAS: gl.constexpr,
              HAS_RESIDUAL: gl.constexpr, DEPENDENT: gl.constexpr):  # fmt: skip
    """Every second box of the program's: its products by the weights, and their end.

    The products of a box begin once the other consumer's of the box before are all under way. Its
    residual is asked for before, so that it has come when they end.
    """
    _wait_for_earlier(DEPENDENT)
    full, empty, loaded = barriers
    bias, residual, out = ends
    first, last, stride = tiles
    main, more = kept
    STAGES: gl.constexpr = x.shape[0]
    BM: gl.constexpr = x.shape[1]
    STEPS: gl.constexpr = main.shape[0]
    BN: gl.constexpr = main.shape[-2]
    BK: gl.constexpr = main.shape[-1]
    X: gl.constexpr = BX if BX > 0 else 32
    WIDE: gl.constexpr = 2 * BN if GEGLU else BN
    # Steps under way: each takes the matrix unit 512 cycles, or 256 of small boxes and less.
    BEHIND: gl.constexpr = 2 if BM * (WIDE + BX) < 64 * 256 and STEPS > 1 else 1
    SUM: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDE, 16])
    SUM_X: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, X, 16])
    HALF: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    column = n0 + gl.arange(0, BN, layout=gl.SliceLayout(0, HALF))
    value_bias = _read_bias(bias, column, HAS_BIAS)
    if GEGLU:
        gate_bias = gl.load(bias + N + column)
    if BX > 0:
        column_x = n0 + BN + gl.arange(0, X, layout=gl.SliceLayout(0, SUM_X))
        bias_x = _read_bias(bias, column_x, HAS_BIAS)
    start = first + WHICH * stride
    turn = WHICH * STEPS
    parity = 1 - WHICH  # so that the first consumer's first box, which has none before it, begins
    for tile in range(start, last, 2 * stride):
        before = 0
        before_x = 0
        if HAS_RESIDUAL:
            before = _read(residual, tile * BM, n0, rows, N, BM, BN)
            if BX > 0:
                before_x = _read(residual, tile * BM, n0 + BN, rows, N, BM, BX)
        acc = warpgroup_mma_init(gl.zeros((BM, WIDE), dtype=gl.float32, layout=SUM))
        if BX > 0:
            ext = warpgroup_mma_init(gl.zeros((BM, X), dtype=gl.float32, layout=SUM_X))
        mbarrier.wait(turns.index(WHICH), parity)
        parity ^= 1
        for k in range(STEPS):
            i = turn % STAGES
            mbarrier.wait(loaded.index(k), 0, pred=tile == start)
            mbarrier.wait(full.index(i), (turn // STAGES) & 1)
            weight = main.index(k).reshape([WIDE, BK]).permute((1, 0))
            acc = warpgroup_mma(x.index(i), weight, acc, use_acc=k > 0, is_async=True)
            if BX > 0:
                weight = more.index(k).permute((1, 0))
                ext = warpgroup_mma(x.index(i), weight, ext, use_acc=k > 0, is_async=True)
                acc, ext = warpgroup_mma_wait(2 * BEHIND, deps=[acc, ext])
                ext = warpgroup_mma_init(ext)
                acc = warpgroup_mma_init(acc)
            else:
                acc = warpgroup_mma_init(warpgroup_mma_wait(BEHIND, deps=[acc]))
            # The products of so many steps before are done: their stage may be filled again.
            done = (turn + STAGES - BEHIND) % STAGES
            mbarrier.arrive(empty.index(done), count=1, pred=k >= BEHIND)
            turn += 1
        mbarrier.arrive(turns.index(1 - WHICH), count=1)
        if BX > 0:
            acc, ext = warpgroup_mma_wait(0, deps=[acc, ext])
        else:
            acc = warpgroup_mma_wait(0, deps=[acc])
        for step in gl.static_range(BEHIND):
            done = (turn + STAGES - BEHIND + step) % STAGES
            mbarrier.arrive(empty.index(done), count=1)
        if GEGLU:
            value, gate = acc.reshape((BM, 2, BN)).permute((0, 2, 1)).split()
            value = gl.convert_layout(value, HALF, assert_trivial=True)
            gate = gl.convert_layout(gate, HALF, assert_trivial=True)
            value += value_bias.to(gl.float32)[None, :]
            gate += gate_bias.to(gl.float32)[None, :]
            _store(value * _gelu(gate), out, tile * BM, n0, rows, N)
        else:
            acc = _ended(acc, value_bias, before, HAS_BIAS, HAS_RESIDUAL)
            _store(acc, out, tile * BM, n0, rows, N)
        if BX > 0:
            ext = _ended(ext, bias_x, before_x, HAS_BIAS, HAS_RESIDUAL)
            _store(ext, out, tile * BM, n0 + BN, rows, N)
        turn += STEPS


@gluon.jit(do_not_specialize=["rows"])
def sdopt_stationary_product(
    x_box, w_box, wx_box, bias, residual, out, rows, N, BN: gl.constexpr, BX: gl.constexpr,
    BK: gl.constexpr, STEPS: gl.constexpr, STAGES: gl.constexpr, GEGLU: gl.constexpr,
    HAS_BIAS: gl.constexpr, HAS_RESIDUAL: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr,
    LOADER_REGISTERS: gl.constexpr, DEPENDENT: gl.constexpr = False,
):  # fmt: skip
    """x W^T + b + r of x (rows, K) and weights (N, K), K = STEPS * BK.

    With GEGLU it is (x Wv^T + bv) * GELU(x Wg^T + bg) of weights (2, N, K). Of the grid
    (N / (BN + BX), programs), a program has BN + BX columns and every so many of the boxes of rows.
    """
    n0 = gl.program_id(0) * (BN + BX)
    BM: gl.constexpr = x_box.block_shape[0]
    tiles = (gl.program_id(1), gl.cdiv(rows, BM), gl.num_programs(1))
    KEPT: gl.constexpr = [STEPS] + w_box.block_shape  # noqa: RUF005
    main = gl.allocate_shared_memory(w_box.dtype, KEPT, w_box.layout)
    more = main
    if BX > 0:
        more = gl.allocate_shared_memory(w_box.dtype, [STEPS, BX, BK], wx_box.layout)
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
    kept = (main, more)
    ends = (bias, residual, out)
    gl.warp_specialize(
        [
            (_consumer, (x, kept, barriers, turns, tiles, ends, n0, rows, N, 0, BX, GEGLU,
                         HAS_BIAS, HAS_RESIDUAL, DEPENDENT)),
            (_consumer, (x, kept, barriers, turns, tiles, ends, n0, rows, N, 1, BX, GEGLU,
                         HAS_BIAS, HAS_RESIDUAL, DEPENDENT)),
            (_producer, (x_box, x, full, empty, tiles, STEPS, DEPENDENT)),
            (_keep_weights, ((w_box, wx_box), kept, loaded, n0, BX, GEGLU, DEPENDENT)),
        ],
        [4, 1, 1],
        [CONSUMER_REGISTERS, LOADER_REGISTERS, LOADER_REGISTERS],
    )  # fmt: skip
