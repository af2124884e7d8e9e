"""Triton kernels of the engine: convolution, matrix product, norms and the solver's step.

Pictures are (images, height, width, channels), float16, contiguous; sums are float32. Operands come
through the tensor memory accelerator, which fills zeros outside of a picture: a convolution is a
matrix product over shifted boxes, without padding and without a mask in its inner loop.
"""

import triton
import triton.language as tl

NO_ACTIVATION, RELU = 0, 1


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
    if ACTIVATION == 1:
        acc = tl.maximum(acc, 0.0)
    tl.store(out + offsets, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["images", "H", "W", "C", "splits"])
def convolution(
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
):
    """A TAPS x TAPS convolution of stride 1 over boxes of BI x BH x BW pixels.

    With PHASES of 2 the picture is doubled first (nearest neighbour) and TAPS is 2: each of the
    four places within a doubled pixel has a kernel of its own, `w_box` holds them one below the
    other. A program computes BN channels and BX more (320 channels are 2 * (128 + 32), but no
    power of 2), whose weights come through `wx_box`. With PARTIAL the sums go to `out` in float32,
    one slice for each of `splits`.
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
    blocks = tl.cdiv(C, BK)
    steps = TAPS * TAPS * blocks
    first = split * tl.cdiv(steps, splits)
    last = tl.minimum(first + tl.cdiv(steps, splits), steps)
    tap = first // blocks
    block = first % blocks
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    extra = tl.zeros((BM, max(BX, 16)), dtype=tl.float32)
    for _ in tl.range(first, last, num_stages=STAGES):
        c0 = block * BK
        a = x_box.load([i0, top + tap // TAPS, left + tap % TAPS, c0]).reshape(BM, BK)
        acc = tl.dot(a, w_box.load([phase * N + n0, tap * C + c0]).T, acc)
        if BX > 0:
            extra = tl.dot(a, wx_box.load([phase * N + n0 + BN, tap * C + c0]).T, extra)
        block += 1
        wraps = block == blocks
        tap = tl.where(wraps, tap + 1, tap)
        block = tl.where(wraps, 0, block)

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


@triton.jit(do_not_specialize=["M", "K", "K2", "splits"])
def matrix_product(
    x_box,
    x2_box,
    w_box,
    bias,
    residual,
    out,
    M,
    N,
    K,
    K2,
    splits,
    PARTIAL: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    JOINED: tl.constexpr,
    GEGLU: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """x @ w.T, x of shape (M, K) and maybe continued by x2 of shape (M, K2); w (N, K + K2).

    With GEGLU w has 2 * N rows, and the result is the first half times GELU of the second one.
    """
    m0 = tl.program_id(0) * BM
    n0 = tl.program_id(1) * BN
    split = tl.program_id(2)
    blocks = tl.cdiv(K, BK)
    steps = blocks + tl.cdiv(K2, BK) if JOINED else blocks
    first = split * tl.cdiv(steps, splits)
    last = tl.minimum(first + tl.cdiv(steps, splits), steps)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    gate = tl.zeros((BM, BN), dtype=tl.float32)
    for k in tl.range(first, tl.minimum(last, blocks), num_stages=STAGES):
        a = x_box.load([m0, k * BK])
        acc = tl.dot(a, w_box.load([n0, k * BK]).T, acc)
        if GEGLU:
            gate = tl.dot(a, w_box.load([N + n0, k * BK]).T, gate)
    if JOINED:
        for k in tl.range(tl.maximum(first, blocks), last, num_stages=STAGES):
            a = x2_box.load([m0, (k - blocks) * BK])
            acc = tl.dot(a, w_box.load([n0, K + (k - blocks) * BK]).T, acc)

    rows = m0 + tl.arange(0, BM)
    columns = n0 + tl.arange(0, BN)
    offsets = rows.to(tl.int64)[:, None] * N + columns[None, :]
    mask = (rows < M)[:, None] & (columns < N)[None, :]
    if GEGLU:
        acc += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        gate += tl.load(bias + N + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        acc *= 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
        tl.store(out + offsets, acc.to(out.dtype.element_ty), mask=mask)
    else:
        if PARTIAL:
            out += split * M.to(tl.int64) * N
        _write(
            acc, offsets, mask, columns, bias, residual, out, N, HAS_BIAS, HAS_RESIDUAL, ACTIVATION
        )


@triton.jit(do_not_specialize=["size"])
def sum_splits(
    partial,
    bias,
    residual,
    out,
    size,
    N,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """The sum of `partial`, of shape (SPLITS, size), in order; then as one product would end."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        acc += tl.load(partial + split * size.to(tl.int64) + at, mask=mask, other=0.0)
    if HAS_BIAS:
        acc += tl.load(bias + at % N, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        acc += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION == 1:
        acc = tl.maximum(acc, 0.0)
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _load_joined(x, x2, image, pixels, row, column, mask, C: tl.constexpr, C2: tl.constexpr):
    """Pixels of one picture of x continued along its channels by x2, never joined in memory."""
    start = image.to(tl.int64) * pixels
    own = mask & (column < C)[None, :] if C2 else mask
    values = tl.load(x + start * C + (row[:, None] * C + column[None, :]), mask=own, other=0.0)
    if C2:
        other = mask & (column >= C)[None, :]
        place = x2 + start * C2 + (row[:, None] * C2 + (column - C)[None, :])
        values += tl.load(place, mask=other, other=0.0)
    return values.to(tl.float32)


@triton.jit(do_not_specialize=["pixels"])
def group_norm_small(
    x,
    x2,
    weight,
    bias,
    out,
    pixels,
    C: tl.constexpr,
    C2: tl.constexpr,
    epsilon,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    SILU: tl.constexpr,
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
    values = _load_joined(x, x2, image, pixels, row, column, mask, C, C2)
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
    place = out + image.to(tl.int64) * pixels * channels
    place += row[:, None] * channels + column[None, :]
    tl.store(place, values.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["pixels"])
def group_statistics(
    x,
    x2,
    sums,
    statistics,
    pixels,
    C: tl.constexpr,
    C2: tl.constexpr,
    GROUPS: tl.constexpr,
    TOGETHER: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP_WIDTH: tl.constexpr,
):
    """Mean and sum of squared differences from it, of TOGETHER groups in one chunk of a picture.

    Rows of neighbouring groups are read together, so that reads are wide. Each channel's mean and
    squares, of differences from its first pixel so that nothing cancels, go through `sums`, of
    shape (images, CHUNKS, 2, channels), to be put together by group (Chan, Golub and LeVeque 1983).
    """
    chunk = tl.program_id(1)
    image = tl.program_id(2)
    channels: tl.constexpr = C + C2
    wide: tl.constexpr = channels // GROUPS
    per_chunk = pixels // CHUNKS
    first = chunk * per_chunk
    within = tl.arange(0, WIDTH)
    column = tl.program_id(0) * TOGETHER * wide + within
    known = (within < TOGETHER * wide) & (column < channels)
    total = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    squares = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    one = first + tl.arange(0, 1)
    origin = _load_joined(x, x2, image, pixels, one, column, known[None, :], C, C2)
    for start in range(0, per_chunk, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < per_chunk)[:, None] & known[None, :]
        values = _load_joined(x, x2, image, pixels, first + row, column, mask, C, C2)
        apart = tl.where(mask, values - origin, 0.0)
        total += apart
        squares += apart * apart
    rows = per_chunk.to(tl.float32)
    beyond = tl.sum(total, 0) / rows
    place = sums + (image * CHUNKS + chunk) * 2 * channels
    tl.store(place + column, tl.sum(origin, 0) + beyond, mask=known)
    tl.store(place + channels + column, tl.sum(squares, 0) - rows * beyond * beyond, mask=known)
    tl.debug_barrier()
    group = tl.program_id(0) * TOGETHER + tl.arange(0, TOGETHER)
    inside = tl.arange(0, GROUP_WIDTH)
    member = group[:, None] * wide + inside[None, :]
    mask = (inside < wide)[None, :] & (group < GROUPS)[:, None]
    means = tl.load(place + member, mask=mask, other=0.0)
    mean = tl.sum(means, 1) / wide
    between = tl.where(mask, means - mean[:, None], 0.0)
    spread = tl.sum(tl.load(place + channels + member, mask=mask, other=0.0), 1)
    spread += rows * tl.sum(between * between, 1)
    home = ((image * CHUNKS + chunk) * GROUPS + group) * 2
    tl.store(statistics + home, mean, mask=group < GROUPS)
    tl.store(statistics + home + 1, spread, mask=group < GROUPS)


@triton.jit(do_not_specialize=["pixels"])
def group_norm_apply(
    x,
    x2,
    statistics,
    weight,
    bias,
    out,
    pixels,
    C: tl.constexpr,
    C2: tl.constexpr,
    epsilon,
    GROUPS: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    SILU: tl.constexpr,
):
    """Normalize ROWS pixels of WIDTH channels by what `group_statistics` found in CHUNKS chunks.

    Chunks are of one size, so their means weigh the same (Chan, Golub and LeVeque 1983).
    """
    image = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    channels: tl.constexpr = C + C2
    wide: tl.constexpr = channels // GROUPS
    known = column < channels
    chunk = tl.arange(0, CHUNKS)
    home = ((image * CHUNKS + chunk)[:, None] * GROUPS + (column // wide)[None, :]) * 2
    means = tl.load(statistics + home, mask=known[None, :], other=0.0)
    spreads = tl.load(statistics + home + 1, mask=known[None, :], other=0.0)
    mean = tl.sum(means, 0) / CHUNKS
    apart = means - mean[None, :]
    variance = tl.sum(spreads, 0) / (pixels * wide).to(tl.float32)
    variance += tl.sum(apart * apart, 0) / CHUNKS
    scale = tl.load(weight + column, mask=known, other=0.0).to(tl.float32)
    scale *= tl.rsqrt(variance + epsilon)
    offset = tl.load(bias + column, mask=known, other=0.0).to(tl.float32) - mean * scale

    mask = (row < pixels)[:, None] & known[None, :]
    values = _load_joined(x, x2, image, pixels, row, column, mask, C, C2)
    values = values * scale[None, :] + offset[None, :]
    if SILU:
        values = values * tl.sigmoid(values)
    place = out + image.to(tl.int64) * pixels * channels
    place += row[:, None] * channels + column[None, :]
    tl.store(place, values.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def layer_norm(
    x,
    weight,
    bias,
    out,
    rows,
    C: tl.constexpr,
    epsilon,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Normalize each row of C entries."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    known = column < C
    mask = (row < rows)[:, None] & known[None, :]
    at = row.to(tl.int64)[:, None] * C + column[None, :]
    values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(values, 1) / C
    apart = tl.where(mask, values - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(apart * apart, 1) / C + epsilon)
    scaled = apart * scale[:, None]
    scaled *= tl.load(weight + column, mask=known, other=0.0).to(tl.float32)[None, :]
    scaled += tl.load(bias + column, mask=known, other=0.0).to(tl.float32)[None, :]
    tl.store(out + at, scaled.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["size"])
def solver_step(
    noise,
    sample,
    before,
    factors,
    unet_input,
    size,
    GUIDED: tl.constexpr,
    NEXT_COPIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Guidance and one step of a linear two-step solver, in place; see `sdopt.engine.solver`."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    predicted = tl.load(noise + at, mask=mask, other=0.0).to(tl.float32)
    if GUIDED:
        conditional = tl.load(noise + size + at, mask=mask, other=0.0).to(tl.float32)
        predicted += tl.load(factors) * (conditional - predicted)
    x = tl.load(sample + at, mask=mask, other=0.0)
    earlier = tl.load(before + at, mask=mask, other=0.0)
    estimate = tl.load(factors + 1) * x + tl.load(factors + 2) * predicted
    x = tl.load(factors + 3) * x + tl.load(factors + 4) * estimate + tl.load(factors + 5) * earlier
    tl.store(sample + at, x, mask=mask)
    tl.store(before + at, estimate, mask=mask)
    for copy in tl.static_range(NEXT_COPIES):
        tl.store(unet_input + copy * size + at, x.to(unet_input.dtype.element_ty), mask=mask)
