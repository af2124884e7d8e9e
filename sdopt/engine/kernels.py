"""Triton kernels of the engine: convolution, product, attention, norms and the solver's step.

Images are (images, height, width, channels), contiguous; sums are float32. From Hopper on operands
come through the tensor memory accelerator, which fills zeros outside of an image: a convolution is
a matrix product over shifted boxes, without padding and without a mask in its inner loop. Older
GPUs have none: with POINTERS the same kernels read through masks, 16 bytes at a time, which the
compiler makes asynchronous copies of (`cp.async`, from 8.0 on).
"""

import triton
import triton.language as tl

from sdopt.engine import epilogue, waiting

_activated = triton.jit(epilogue.activated)
_gelu = triton.jit(epilogue.gelu)
_wait_for_earlier = triton.jit(waiting.wait_for_earlier)
_let_next_start = triton.jit(waiting.let_next_start)


@triton.jit
def _write(
    acc,
    offsets,
    mask,
    columns,
    bias,
    residual,
    out,
    N,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Bias, residual, activation; rounded once."""
    if HAS_BIAS:
        acc += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        acc += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
    acc = _activated(acc, ACTIVATION)
    tl.store(out + offsets, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _aligned(count):
    """The same multiple of 8, of which the compiler now knows that it is one."""
    return count // 8 * 8


@triton.jit
def _load_pixels(x, image, h, w, channel, images, H, W, C):
    """Channels of pixels (rows) of x (images, H, W, C); zeros outside of it."""
    inside = (h >= 0) & (h < H) & (w >= 0) & (w < W) & (image < images)
    place = ((image * H + h) * W + w).to(tl.int64) * C
    mask = inside[:, None] & (channel < C)[None, :]
    return tl.load(x + (place[:, None] + channel[None, :]), mask=mask, other=0.0)


@triton.jit
def _load_rows(x, row, column, rows, columns, width):
    """Entries of rows of a matrix whose rows are `width` apart; zeros from `columns` on."""
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    place = row.to(tl.int64)[:, None] * width + column[None, :]
    return tl.load(x + place, mask=mask, other=0.0)


@triton.jit
def _load_turned(weight, row, start, column, rows, columns, width):
    """Like `_load_rows`, from entry `start` of each row on, (columns, rows)."""
    mask = (column < columns)[:, None] & (row < rows)[None, :]
    place = row.to(tl.int64)[None, :] * width + start + column[:, None]
    return tl.load(weight + place, mask=mask, other=0.0)


@triton.jit(do_not_specialize=["images", "H", "W", "C", "splits"])
def sdopt_convolution(
    x_box,
    w_box,
    wx_box,
    bias,
    residual,
    out,
    images,
    H,
    W,
    C,
    N,
    splits,
    TAPS: tl.constexpr,
    PHASES: tl.constexpr,
    DOWNSAMPLE: tl.constexpr,
    POINTERS: tl.constexpr,
    PARTIAL: tl.constexpr,
    BI: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    BN: tl.constexpr,
    BX: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """A TAPS x TAPS convolution over boxes of BI x BH x BW of the H x W pixels it makes.

    With PHASES of 2 the image is doubled first (nearest neighbour) and TAPS is 2: each of the
    four places within a doubled pixel has a kernel of its own, `w_box` holds them one below the
    other; H x W is then the image before. DOWNSAMPLE is a stride of 2: `x_box` then shows pairs of
    rows and of columns, (images, H, 2, W, 2 * C), of C that BK divides. A program computes BN
    channels and BX more (320 channels are 2 * (128 + 32), but no power of 2), whose weights come
    through `wx_box`. With PARTIAL the sums go to `out` in float32, one slice for each of `splits`.
    With POINTERS the boxes are the tensors themselves, `x_box` of DOWNSAMPLE the image of 2 * H x
    2 * W, C is a multiple of 8 and need not be one of BK.
    """
    tiles_w = tl.cdiv(W, BW)
    tiles_h = tl.cdiv(H, BH)
    tile = tl.program_id(0)
    w0 = (tile % tiles_w) * BW
    h0 = ((tile // tiles_w) % tiles_h) * BH
    i0 = (tile // (tiles_w * tiles_h)) * BI
    n0 = tl.program_id(1) * (BN + BX)
    split = tl.program_id(2) % splits
    phase = tl.program_id(2) // splits
    phase_h = phase // PHASES
    phase_w = phase % PHASES
    # Three taps reach one pixel back; two of them back or on, by phase.
    top = h0 - 1 + phase_h
    left = w0 - 1 + phase_w

    BM: tl.constexpr = BI * BH * BW
    if POINTERS:
        C = _aligned(C)
        row = tl.arange(0, BM)
        row_w = w0 + row % BW
        row_h = h0 + (row // BW) % BH
        row_i = i0 + row // (BW * BH)
        of_block = tl.arange(0, BK)
        channels = n0 + tl.arange(0, BN)
        more = n0 + BN + tl.arange(0, max(BX, 16))
    blocks = tl.cdiv(C, BK)
    steps = TAPS * TAPS * blocks
    first = split * tl.cdiv(steps, splits)
    last = tl.minimum(first + tl.cdiv(steps, splits), steps)
    tap = first // blocks
    block = first % blocks
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    extra = tl.zeros((BM, max(BX, 16)), dtype=tl.float32)
    _wait_for_earlier(DEPENDENT)
    for _ in tl.range(first, last, num_stages=STAGES):
        c0 = block * BK
        if POINTERS:
            channel = c0 + of_block
            if DOWNSAMPLE:
                h = 2 * row_h + tap // TAPS - 1
                w = 2 * row_w + tap % TAPS - 1
                a = _load_pixels(x_box, row_i, h, w, channel, images, 2 * H, 2 * W, C)
            else:
                h = row_h + tap // TAPS - 1 + phase_h
                w = row_w + tap % TAPS - 1 + phase_w
                a = _load_pixels(x_box, row_i, h, w, channel, images, H, W, C)
            taps = TAPS * TAPS * C
            own = w_box + phase.to(tl.int64) * N * taps
            b = _load_turned(own, channels, tap * C, channel, N, C, taps)
        elif DOWNSAMPLE:
            # One row back is the second of the pair before.
            h = tap // TAPS + 1
            w = tap % TAPS + 1
            box = [i0, h0 + h // 2 - 1, h % 2, w0 + w // 2 - 1, w % 2 * C + c0]
            a = x_box.load(box).reshape(BM, BK)
            b = w_box.load([phase * N + n0, tap * C + c0]).T
        else:
            a = x_box.load([i0, top + tap // TAPS, left + tap % TAPS, c0]).reshape(BM, BK)
            b = w_box.load([phase * N + n0, tap * C + c0]).T
        acc = tl.dot(a, b, acc)
        if BX > 0:
            if POINTERS:
                bx = _load_turned(own, more, tap * C, channel, N, C, taps)
            else:
                bx = wx_box.load([phase * N + n0 + BN, tap * C + c0]).T
            extra = tl.dot(a, bx, extra)
        block += 1
        wraps = block == blocks
        tap = tl.where(wraps, tap + 1, tap)
        block = tl.where(wraps, 0, block)
    _let_next_start(DEPENDENT)

    rows = tl.arange(0, BM)
    w = w0 + rows % BW
    h = h0 + (rows // BW) % BH
    i = i0 + rows // (BW * BH)
    inside = (w < W) & (h < H) & (i < images)
    pixel = (i * H * PHASES + h * PHASES + phase_h) * W * PHASES + w * PHASES + phase_w
    at = pixel.to(tl.int64)[:, None] * N
    if PARTIAL:
        out += split * (images * H * W * PHASES * PHASES).to(tl.int64) * N
    columns = n0 + tl.arange(0, BN)
    mask = inside[:, None] & (columns < N)[None, :]
    offsets = at + columns[None, :]
    _write(acc, offsets, mask, columns, bias, residual, out, N, HAS_BIAS, HAS_RESIDUAL, ACTIVATION)
    if BX > 0:
        columns = n0 + BN + tl.arange(0, BX)
        mask = inside[:, None] & (columns < N)[None, :]
        offsets = at + columns[None, :]
        _write(
            extra, offsets, mask, columns, bias, residual, out, N, HAS_BIAS, HAS_RESIDUAL,
            ACTIVATION,
        )  # fmt: skip


@triton.jit(do_not_specialize=["images", "H", "W"])
def sdopt_narrow_convolution(
    x,
    weight,
    bias,
    out,
    images,
    H,
    W,
    N,
    C: tl.constexpr,
    DEPTH: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """A 3 x 3 convolution of so few channels that all 9 * C products are one step of DEPTH.

    `weight` is (N, 9 * C). BM pixels in the order of memory by BN channels.
    """
    pixel = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    depth = tl.arange(0, DEPTH)
    tap = depth // C
    w = (pixel % W)[:, None] + (tap % 3)[None, :] - 1
    h = (pixel // W % H)[:, None] + (tap // 3)[None, :] - 1
    image = (pixel // (H * W))[:, None]
    inside = (w >= 0) & (w < W) & (h >= 0) & (h < H) & (image < images)
    inside &= (depth < 9 * C)[None, :]
    at = ((image * H + h) * W + w) * C + (depth % C)[None, :]
    _wait_for_earlier(DEPENDENT)
    a = tl.load(x + at, mask=inside, other=0.0)
    known = (depth < 9 * C)[:, None] & (column < N)[None, :]
    b = tl.load(weight + column[None, :] * (9 * C) + depth[:, None], mask=known, other=0.0)
    acc = tl.dot(a, b)
    _let_next_start(DEPENDENT)
    mask = (pixel < images * H * W)[:, None] & (column < N)[None, :]
    offsets = pixel.to(tl.int64)[:, None] * N + column[None, :]
    _write(acc, offsets, mask, column, bias, bias, out, N, HAS_BIAS, False, 0)


@triton.jit(do_not_specialize=["M", "K", "K2", "splits"])
def sdopt_matrix_product(
    x_box,
    x2_box,
    w_box,
    wx_box,
    bias,
    residual,
    out,
    M,
    N,
    K,
    K2,
    splits,
    POINTERS: tl.constexpr,
    PARTIAL: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BX: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    JOINED: tl.constexpr,
    GEGLU: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """x @ w.T, x of shape (M, K) and maybe continued by x2 of shape (M, K2); w (N, K + K2).

    A program computes BN columns and BX more, as in a convolution. With GEGLU, which has no such,
    w has 2 * N rows, and the result is the first half times GELU of the second one. With POINTERS
    the boxes are the tensors themselves, K and K2 multiples of 8.
    """
    m0 = tl.program_id(0) * BM
    n0 = tl.program_id(1) * (BN + BX)
    split = tl.program_id(2)
    if POINTERS:
        K = _aligned(K)
        K2 = _aligned(K2)
        row = m0 + tl.arange(0, BM)
        of_block = tl.arange(0, BK)
        own = n0 + tl.arange(0, BN)
        more = n0 + BN + tl.arange(0, max(BX, 16))
        wide = K + K2 if JOINED else K
        all_rows = 2 * N if GEGLU else N
    blocks = tl.cdiv(K, BK)
    steps = blocks + tl.cdiv(K2, BK) if JOINED else blocks
    first = split * tl.cdiv(steps, splits)
    last = tl.minimum(first + tl.cdiv(steps, splits), steps)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    gate = tl.zeros((BM, BN), dtype=tl.float32)
    extra = tl.zeros((BM, max(BX, 16)), dtype=tl.float32)
    _wait_for_earlier(DEPENDENT)
    for k in tl.range(first, tl.minimum(last, blocks), num_stages=STAGES):
        if POINTERS:
            column = k * BK + of_block
            a = _load_rows(x_box, row, column, M, K, K)
            b = _load_turned(w_box, own, 0, column, all_rows, K, wide)
        else:
            a = x_box.load([m0, k * BK])
            b = w_box.load([n0, k * BK]).T
        acc = tl.dot(a, b, acc)
        if GEGLU:
            if POINTERS:
                b = _load_turned(w_box, N + own, 0, column, all_rows, K, wide)
            else:
                b = w_box.load([N + n0, k * BK]).T
            gate = tl.dot(a, b, gate)
        if BX > 0:
            if POINTERS:
                b = _load_turned(w_box, more, 0, column, all_rows, K, wide)
            else:
                b = wx_box.load([n0 + BN, k * BK]).T
            extra = tl.dot(a, b, extra)
    if JOINED:
        for k in tl.range(tl.maximum(first, blocks), last, num_stages=STAGES):
            k0 = (k - blocks) * BK
            if POINTERS:
                column = k0 + of_block
                a = _load_rows(x2_box, row, column, M, K2, K2)
                b = _load_turned(w_box, own, K, column, all_rows, K2, wide)
            else:
                a = x2_box.load([m0, k0])
                b = w_box.load([n0, K + k0]).T
            acc = tl.dot(a, b, acc)
            if BX > 0:
                if POINTERS:
                    b = _load_turned(w_box, more, K, column, all_rows, K2, wide)
                else:
                    b = wx_box.load([n0 + BN, K + k0]).T
                extra = tl.dot(a, b, extra)
    _let_next_start(DEPENDENT)

    rows = m0 + tl.arange(0, BM)
    at = rows.to(tl.int64)[:, None] * N
    columns = n0 + tl.arange(0, BN)
    mask = (rows < M)[:, None] & (columns < N)[None, :]
    if GEGLU:
        acc += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        gate += tl.load(bias + N + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        acc *= _gelu(gate)
        tl.store(out + at + columns[None, :], acc.to(out.dtype.element_ty), mask=mask)
    else:
        if PARTIAL:
            out += split * M.to(tl.int64) * N
        offsets = at + columns[None, :]
        _write(
            acc, offsets, mask, columns, bias, residual, out, N, HAS_BIAS, HAS_RESIDUAL, ACTIVATION
        )
        if BX > 0:
            columns = n0 + BN + tl.arange(0, BX)
            mask = (rows < M)[:, None] & (columns < N)[None, :]
            offsets = at + columns[None, :]
            _write(
                extra, offsets, mask, columns, bias, residual, out, N, HAS_BIAS, HAS_RESIDUAL,
                ACTIVATION,
            )  # fmt: skip


@triton.jit
def sdopt_epilogue(
    values,
    bias,
    residual,
    out,
    size,
    N,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """Bias, residual and activation of what the library computed, in one pass."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    _wait_for_earlier(DEPENDENT)
    acc = tl.load(values + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        acc += tl.load(bias + at % N, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        acc += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    _let_next_start(DEPENDENT)
    acc = _activated(acc, ACTIVATION)
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def sdopt_sum_splits(
    partial,
    scale,
    bias,
    residual,
    out,
    size,
    N,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    SCALED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """The sum of `partial`, of shape (SPLITS, size), in order; then as one product would end."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    _wait_for_earlier(DEPENDENT)
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        acc += tl.load(partial + split * size.to(tl.int64) + at, mask=mask, other=0.0)
    if SCALED:
        acc *= tl.load(scale + at % N, mask=mask, other=0.0)
    if HAS_BIAS:
        acc += tl.load(bias + at % N, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        acc += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    _let_next_start(DEPENDENT)
    acc = _activated(acc, ACTIVATION)
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _load_joined(x, x2, image, pixels, row, column, mask, C: tl.constexpr, C2: tl.constexpr):
    """Pixels of one image of x continued along its channels by x2, never joined in memory."""
    start = image.to(tl.int64) * pixels
    own = mask & (column < C)[None, :] if C2 else mask
    values = tl.load(x + start * C + (row[:, None] * C + column[None, :]), mask=own, other=0.0)
    if C2:
        other = mask & (column >= C)[None, :]
        place = x2 + start * C2 + (row[:, None] * C2 + (column - C)[None, :])
        values += tl.load(place, mask=other, other=0.0)
    return values.to(tl.float32)


@triton.jit
def _rounded(values, factor, out):
    """In the result's type; float8 has room for less, so `factor` brings values into it."""
    if out.dtype.element_ty.primitive_bitwidth == 8:
        values = values * factor
    return values.to(out.dtype.element_ty)


@triton.jit(do_not_specialize=["pixels"])
def sdopt_group_norm_small(
    x,
    x2,
    shift,
    weight,
    bias,
    out,
    pixels,
    C: tl.constexpr,
    C2: tl.constexpr,
    epsilon,
    factor,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    SHIFTED: tl.constexpr,
    SILU: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """GroupNorm of one group whose pixels all fit into registers: ROWS of WIDTH channels."""
    group = tl.program_id(0)
    image = tl.program_id(1)
    channels: tl.constexpr = C + C2
    wide: tl.constexpr = channels // GROUPS
    row = tl.arange(0, ROWS)
    within = tl.arange(0, WIDTH)
    column = group * wide + within
    known = within < wide
    mask = (row < pixels)[:, None] & known[None, :]
    _wait_for_earlier(DEPENDENT)
    values = _load_joined(x, x2, image, pixels, row, column, mask, C, C2)
    if SHIFTED:
        values += tl.load(shift + column, mask=known, other=0.0).to(tl.float32)[None, :]
        values = tl.where(mask, values, 0.0)
    count = (pixels * wide).to(tl.float32)
    mean = tl.sum(tl.sum(values, 1), 0) / count
    apart = tl.where(mask, values - mean, 0.0)
    variance = tl.sum(tl.sum(apart * apart, 1), 0) / count
    scale = tl.load(weight + column, mask=known, other=0.0).to(tl.float32)
    scale *= tl.rsqrt(variance + epsilon)
    offset = tl.load(bias + column, mask=known, other=0.0).to(tl.float32)
    values = apart * scale[None, :] + offset[None, :]
    if SILU:
        values = values * tl.sigmoid(values)
    _let_next_start(DEPENDENT)
    place = out + image.to(tl.int64) * pixels * channels
    place += row[:, None] * channels + column[None, :]
    tl.store(place, _rounded(values, factor, out), mask=mask)


@triton.jit(do_not_specialize=["pixels", "chunk_rows"])
def sdopt_group_statistics(
    x,
    x2,
    shift,
    statistics,
    pixels,
    chunk_rows,
    C: tl.constexpr,
    C2: tl.constexpr,
    GROUPS: tl.constexpr,
    TOGETHER: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    SHIFTED: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """Mean and sum of squared differences from it, of TOGETHER groups in one chunk of an image.

    Rows of neighbouring groups are read together, so that reads are wide. Each channel's mean and
    squares, of differences from its first pixel so that nothing cancels, are put together by group
    (Chan, Golub and LeVeque 1983).
    """
    chunk = tl.program_id(1)
    image = tl.program_id(2)
    channels: tl.constexpr = C + C2
    wide: tl.constexpr = channels // GROUPS
    first = chunk * chunk_rows
    rows = tl.minimum(chunk_rows, pixels - first)
    within = tl.arange(0, WIDTH)
    column = tl.program_id(0) * TOGETHER * wide + within
    known = (within < TOGETHER * wide) & (column < channels)
    total = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    squares = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    one = first + tl.arange(0, 1)
    _wait_for_earlier(DEPENDENT)
    origin = _load_joined(x, x2, image, pixels, one, column, known[None, :], C, C2)
    for start in tl.range(0, rows, ROWS, loop_unroll_factor=2):  # the loads of both at once
        row = start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & known[None, :]
        values = _load_joined(x, x2, image, pixels, first + row, column, mask, C, C2)
        apart = tl.where(mask, values - origin, 0.0)
        total += apart
        squares += apart * apart
    _let_next_start(DEPENDENT)
    count = rows.to(tl.float32)
    beyond = tl.sum(total, 0) / count
    mean = tl.sum(origin, 0) + beyond
    if SHIFTED:
        mean += tl.load(shift + column, mask=known, other=0.0).to(tl.float32)
    spread = tl.sum(squares, 0) - count * beyond * beyond
    nth = tl.arange(0, TOGETHER)
    member = (within // wide)[None, :] == nth[:, None]
    group_mean = tl.sum(tl.where(member, mean[None, :], 0.0), 1) / wide
    between = mean - tl.sum(tl.where(member, group_mean[:, None], 0.0), 0)
    spread += count * between * between
    group = tl.program_id(0) * TOGETHER + nth
    home = statistics + ((image * tl.num_programs(1) + chunk) * GROUPS + group) * 2
    tl.store(home, group_mean, mask=group < GROUPS)
    spreads = tl.sum(tl.where(member, spread[None, :], 0.0), 1)
    tl.store(home + 1, spreads, mask=group < GROUPS)


@triton.jit
def _chunk_statistics(statistics, image, chunks, chunk, group, known, GROUPS: tl.constexpr):
    """Means and sums of squares of some chunks (rows) and groups (columns)."""
    mask = (chunk < chunks)[:, None] & known[None, :]
    place = statistics + ((image * chunks + chunk)[:, None] * GROUPS + group[None, :]) * 2
    return tl.load(place, mask=mask, other=0.0), tl.load(place + 1, mask=mask, other=0.0)


@triton.jit(do_not_specialize=["pixels", "chunks", "chunk_rows"])
def sdopt_combine_statistics(
    statistics,
    combined,
    pixels,
    chunks,
    chunk_rows,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """`group_statistics` of an image's many chunks as one chunk (Chan, Golub and LeVeque 1983)."""
    image = tl.program_id(1)
    group = tl.program_id(0) * TOGETHER + tl.arange(0, TOGETHER)
    known = group < GROUPS
    total = tl.zeros((BLOCK, TOGETHER), dtype=tl.float32)
    _wait_for_earlier(DEPENDENT)
    for start in range(0, chunks, BLOCK):
        chunk = start + tl.arange(0, BLOCK)
        means, _ = _chunk_statistics(statistics, image, chunks, chunk, group, known, GROUPS)
        rows = tl.maximum(tl.minimum(chunk_rows, pixels - chunk * chunk_rows), 0)
        total += means * rows.to(tl.float32)[:, None]
    mean = tl.sum(total, 0) / pixels
    spread = tl.zeros((BLOCK, TOGETHER), dtype=tl.float32)
    for start in range(0, chunks, BLOCK):
        chunk = start + tl.arange(0, BLOCK)
        means, spreads = _chunk_statistics(statistics, image, chunks, chunk, group, known, GROUPS)
        rows = tl.maximum(tl.minimum(chunk_rows, pixels - chunk * chunk_rows), 0)
        apart = means - mean[None, :]
        spread += spreads + (rows * (C // GROUPS)).to(tl.float32)[:, None] * apart * apart
    _let_next_start(DEPENDENT)
    place = combined + (image * GROUPS + group) * 2
    tl.store(place, mean, mask=known)
    tl.store(place + 1, tl.sum(spread, 0), mask=known)


@triton.jit(do_not_specialize=["pixels", "chunks", "chunk_rows"])
def sdopt_group_norm_apply(
    x,
    x2,
    shift,
    statistics,
    weight,
    bias,
    out,
    pixels,
    chunks,
    chunk_rows,
    C: tl.constexpr,
    C2: tl.constexpr,
    epsilon,
    factor,
    GROUPS: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    NEAR: tl.constexpr,
    SHIFTED: tl.constexpr,
    SILU: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """Normalize ROWS pixels of WIDTH channels by what `group_statistics` found in the chunks.

    There are at most CHUNKS of them, and the channels belong to at most NEAR groups.
    """
    image = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    channels: tl.constexpr = C + C2
    wide: tl.constexpr = channels // GROUPS
    known = column < channels
    mask = (row < pixels)[:, None] & known[None, :]
    _wait_for_earlier(DEPENDENT)
    values = _load_joined(x, x2, image, pixels, row, column, mask, C, C2)

    group = tl.program_id(2) * WIDTH // wide + tl.arange(0, NEAR)
    chunk = tl.arange(0, CHUNKS)
    means, spreads = _chunk_statistics(
        statistics, image, chunks, chunk, group, group < GROUPS, GROUPS
    )
    rows = tl.maximum(tl.minimum(chunk_rows, pixels - chunk * chunk_rows), 0).to(tl.float32)
    mean = tl.sum(means * rows[:, None], 0) / pixels
    apart = means - mean[None, :]
    variance = tl.sum(spreads + wide * rows[:, None] * apart * apart, 0) / pixels / wide
    inverse = tl.rsqrt(variance + epsilon)
    member = group[:, None] == (column // wide)[None, :]
    scale = tl.sum(tl.where(member, inverse[:, None], 0.0), 0)
    scale *= tl.load(weight + column, mask=known, other=0.0).to(tl.float32)
    center = tl.sum(tl.where(member, mean[:, None], 0.0), 0)
    if SHIFTED:
        center -= tl.load(shift + column, mask=known, other=0.0).to(tl.float32)
    offset = tl.load(bias + column, mask=known, other=0.0).to(tl.float32) - center * scale

    values = values * scale[None, :] + offset[None, :]
    if SILU:
        values = values * tl.sigmoid(values)
    _let_next_start(DEPENDENT)
    place = out + image.to(tl.int64) * pixels * channels
    place += row[:, None] * channels + column[None, :]
    tl.store(place, _rounded(values, factor, out), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def sdopt_layer_norm(
    x,
    weight,
    bias,
    out,
    rows,
    C: tl.constexpr,
    epsilon,
    factor,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """Normalize each row of C entries."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    known = column < C
    mask = (row < rows)[:, None] & known[None, :]
    at = row.to(tl.int64)[:, None] * C + column[None, :]
    _wait_for_earlier(DEPENDENT)
    values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(values, 1) / C
    apart = tl.where(mask, values - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(apart * apart, 1) / C + epsilon)
    scaled = apart * scale[:, None]
    scaled *= tl.load(weight + column, mask=known, other=0.0).to(tl.float32)[None, :]
    scaled += tl.load(bias + column, mask=known, other=0.0).to(tl.float32)[None, :]
    _let_next_start(DEPENDENT)
    tl.store(out + at, _rounded(scaled, factor, out), mask=mask)


@triton.jit(do_not_specialize=["tokens", "keys", "q_images"])
def sdopt_attention(
    q,
    k,
    v,
    out,
    tokens,
    keys,
    q_images,
    q_row,
    k_row,
    scale,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    EVEN: tl.constexpr,
    CAUSAL: tl.constexpr,
    BOXED: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """softmax(scale * q @ k.T) @ v for BM tokens of one head; softmax as keys come (Dao 2022).

    Heads of SIZE entries are padded to WIDTH. `q_row` and `k_row` are how far tokens lie apart;
    `scale` is in powers of 2, times log2(e). After `q_images` images of the query its first one is
    used again. With EVEN the keys are a multiple of BN. With BOXED `k` and `v` are boxes of BN keys
    by WIDTH entries: those beyond SIZE are the next head's, and meet zeros in the query, or columns
    of the result that nobody keeps. With CAUSAL no token sees a later one.
    """
    head = tl.program_id(1) % HEADS
    image = tl.program_id(1) // HEADS
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    entry = tl.arange(0, WIDTH)
    own = (row < tokens)[:, None] & (entry < SIZE)[None, :]
    q_at = (image % q_images * tokens + row).to(tl.int64)[:, None] * q_row
    _wait_for_earlier(DEPENDENT)
    query = tl.load(q + q_at + (head * SIZE + entry)[None, :], mask=own, other=0.0)
    acc = tl.zeros((BM, WIDTH), dtype=tl.float32)
    highest = tl.full((BM,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BM,), dtype=tl.float32)
    for start in tl.range(0, keys, BN, num_stages=STAGES):
        key = start + tl.arange(0, BN)
        place = (image * keys + key).to(tl.int64)[:, None] * k_row + (head * SIZE + entry)[None, :]
        mask = (key < keys)[:, None] & (entry < SIZE)[None, :]
        if EVEN:
            mask = (entry < SIZE)[None, :]
        if BOXED:
            score = tl.dot(query, k.load([image, start, head * SIZE]).reshape(BN, WIDTH).T)
        else:
            score = tl.dot(query, tl.load(k + place, mask=mask, other=0.0).T)
        if not EVEN:
            score = tl.where((key < keys)[None, :], score, float("-inf"))
        if CAUSAL:
            score = tl.where(key[None, :] <= row[:, None], score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1) * scale)
        weight = tl.exp2(score * scale - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weight, 1)
        if BOXED:
            value = v.load([image, start, head * SIZE]).reshape(BN, WIDTH)
        else:
            value = tl.load(v + place, mask=mask, other=0.0)
        acc = tl.dot(weight.to(value.dtype), value, acc * shrink[:, None])
        highest = higher
    _let_next_start(DEPENDENT)
    at = (image * tokens + row).to(tl.int64)[:, None] * (HEADS * SIZE)
    place = out + at + (head * SIZE + entry)[None, :]
    tl.store(place, (acc / total[:, None]).to(out.dtype.element_ty), mask=own)


@triton.jit(do_not_specialize=["size"])
def sdopt_solver_step(
    noise,
    sample,
    before,
    factors,
    unet_input,
    size,
    GUIDED: tl.constexpr,
    NEXT_COPIES: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):
    """Guidance and one step of a linear two-step solver, in place; see `sdopt.engine.solver`."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    _wait_for_earlier(DEPENDENT)
    predicted = tl.load(noise + at, mask=mask, other=0.0).to(tl.float32)
    if GUIDED:
        conditional = tl.load(noise + size + at, mask=mask, other=0.0).to(tl.float32)
        predicted += tl.load(factors) * (conditional - predicted)
    x = tl.load(sample + at, mask=mask, other=0.0)
    earlier = tl.load(before + at, mask=mask, other=0.0)
    estimate = tl.load(factors + 1) * x + tl.load(factors + 2) * predicted
    x = tl.load(factors + 3) * x + tl.load(factors + 4) * estimate + tl.load(factors + 5) * earlier
    _let_next_start(DEPENDENT)
    tl.store(sample + at, x, mask=mask)
    tl.store(before + at, estimate, mask=mask)
    for copy in tl.static_range(NEXT_COPIES):
        tl.store(unet_input + copy * size + at, x.to(unet_input.dtype.element_ty), mask=mask)
