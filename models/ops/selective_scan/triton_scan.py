"""The selective scan's Triton kernels, launched by triton_kernel.py. Symbols as in reference.py.

A thread holds the states of one channel of one sequence in registers, a tile [states, lanes] a program, and walks along
time: threads exchange only the sums over channels of B's and C's gradients, so no step of the recurrence waits at a
barrier. Tensors are read by their strides; the channel (state) stride is 1. A sequence is numbered over two batch
dimensions, the inner one of size ``inner``; offsets that grow with the image are 64-bit.
Written for Triton 3.0 and later: no tuple is carried through a loop.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
STATES = tl.constexpr(16)  # rows of a tile; A, B and C are filled up with zeros
WARP = tl.constexpr(32)  # lanes of a program of backward: their sums need no barrier
SPAN = tl.constexpr(2)  # steps whose states backward holds in registers, written out there; divides a chunk


def _sizes(names: str, tensors: str) -> list[str]:
    """Arguments that the kernels are not specialised for: images have many sizes."""
    return names.split() + [f"{tensor}_{stride}" for tensor in tensors.split() for stride in ("outer", "inner", "time")]


@triton.jit
def _tile(base, offsets):
    """base + offsets, the pointers of a tile [states, lanes] or [1, lanes], accessed with a thread to a lane.

    The compiler assigns threads along the axis it takes for the more contiguous one; without this hint it would spread
    the states over threads and pass them through shared memory at every step. Alignment 1 keeps it from using wide
    accesses, since the hinted contiguity need not be real.
    """
    return tl.multiple_of(tl.max_contiguous(base + offsets, [1, 2]), [1, 1])


@triton.jit
def _row(tensor, sequence, inner, outer_stride, inner_stride):
    """The pointer to a sequence's first step."""
    return tensor + (sequence // inner).to(tl.int64) * outer_stride + (sequence % inner).to(tl.int64) * inner_stride


@triton.jit
def _per_channel(vector, channel, GIVEN: tl.constexpr):
    """D or the bias, [1, lanes]; 0 where it is not given."""
    if GIVEN:
        value = tl.load(_tile(vector, channel)).to(tl.float32)
    else:
        value = tl.zeros_like(channel).to(tl.float32)
    return value


@triton.jit
def _decay_rates(A, channel, n, N: tl.constexpr):
    """A log2(e), [states, lanes], for the hardware's exp2. States beyond N are 0."""
    return tl.load(_tile(A + channel * N, n), mask=n < N, other=0.0) * LOG2E


@triton.jit
def _column(tensor, n, N: tl.constexpr):
    """B or C at one step, [states, lanes], the same for all lanes of a sequence. States beyond N are 0."""
    return tl.load(_tile(tensor, n), mask=n < N, other=0.0)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def _step_size(raw, SOFTPLUS: tl.constexpr):
    """softplus(raw) to full relative precision: log(1 + e) loses a small e, where the series takes over."""
    if SOFTPLUS:
        e = tl.exp2(raw * LOG2E)
        series = e * (1.0 - e * (0.5 - e * (0.33333333 - e * (0.25 - e * 0.2))))
        step = tl.where(raw > 20.0, raw, tl.where(e < 0.0625, series, tl.log2(1.0 + e) * LN2))
    else:
        step = raw
    return step


@triton.jit(do_not_specialize=_sizes("lanes channels inner length", "u delta B C z y"))
def forward(
    u, delta, A, B, C, D, z, bias, y, kept, lanes, channels, inner, length, u_outer, u_inner, u_time, delta_outer,
    delta_inner, delta_time, B_outer, B_inner, B_time, C_outer, C_inner, C_time, z_outer, z_inner, z_time, y_outer,
    y_inner, y_time, N: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr, KEEP: tl.constexpr, HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr
):  # fmt: skip
    """y, and where KEEP the state before every CHUNK steps, kept (chunks, N, lanes).

    Lanes are (sequence, channel) pairs, so that any number of channels fills them. Those beyond the last pair repeat
    it, and write the same values to the same places.
    """
    lane = tl.minimum(tl.program_id(0) * LANES + tl.arange(0, LANES), lanes - 1)[None, :]
    sequence, channel = lane // channels, lane % channels
    n = tl.arange(0, STATES)[:, None]
    rates = _decay_rates(A, channel, n, N)
    skip = _per_channel(D, channel, HAS_D)
    shift = _per_channel(bias, channel, HAS_BIAS)

    u_at = _row(u, sequence, inner, u_outer, u_inner)
    delta_at = _row(delta, sequence, inner, delta_outer, delta_inner)
    z_at = _row(z, sequence, inner, z_outer, z_inner)
    y_at = _row(y, sequence, inner, y_outer, y_inner)
    B_at = _row(B, sequence, inner, B_outer, B_inner)
    C_at = _row(C, sequence, inner, C_outer, C_inner)
    kept_at = kept + lane

    # A step's inputs are loaded while the step before is computed.
    u_next, delta_next, z_next = tl.load(_tile(u_at, channel)), tl.load(_tile(delta_at, channel)), 0.0
    if HAS_Z:
        z_next = tl.load(_tile(z_at, channel))
    B_next, C_next = _column(B_at, n, N), _column(C_at, n, N)
    h = tl.zeros([STATES, LANES], tl.float32)
    for start in range(0, length, CHUNK):
        if KEEP:
            tl.store(_tile(kept_at, n.to(tl.int64) * lanes), h, mask=n < N)
            kept_at += N * lanes.to(tl.int64)
        for t in range(start, tl.minimum(start + CHUNK, length)):
            u_t, raw = u_next.to(tl.float32), delta_next.to(tl.float32) + shift
            B_t, C_t = B_next.to(tl.float32), C_next.to(tl.float32)
            more = (t + 1 < length).to(tl.int32)  # the last step loads itself once more
            u_at += more * u_time
            delta_at += more * delta_time
            B_at += more * B_time
            C_at += more * C_time
            u_next, delta_next = tl.load(_tile(u_at, channel)), tl.load(_tile(delta_at, channel))
            B_next, C_next = _column(B_at, n, N), _column(C_at, n, N)

            step = _step_size(raw, SOFTPLUS)
            h = tl.exp2(rates * step) * h + B_t * (step * u_t)
            y_t = tl.sum(C_t * h, axis=0)[None, :] + skip * u_t
            if HAS_Z:
                z_t = z_next.to(tl.float32)
                z_at += more * z_time
                z_next = tl.load(_tile(z_at, channel))
                y_t *= z_t * _sigmoid(z_t)
            tl.store(_tile(y_at, channel), y_t.to(y.dtype.element_ty))
            y_at += y_time


@triton.jit
def _inputs(u_at, delta_at, channel, shift, t, length, u_time, delta_time, SOFTPLUS: tl.constexpr):
    """u, the raw step size and the step size at t.

    Past the end, the last step's values: dy is masked to 0 there, so they add nothing to any gradient.
    """
    at = tl.minimum(t, length - 1).to(tl.int64)
    u_t = tl.load(_tile(u_at + at * u_time, channel)).to(tl.float32)
    raw = tl.load(_tile(delta_at + at * delta_time, channel)).to(tl.float32) + shift
    return u_t, raw, _step_size(raw, SOFTPLUS)


@triton.jit
def _column_at(tensor, t, length, stride, n, N: tl.constexpr):
    return _column(tensor + tl.minimum(t, length - 1).to(tl.int64) * stride, n, N).to(tl.float32)


@triton.jit
def _advance(h, B_t, rates, u_t, step):
    return tl.exp2(rates * step) * h + B_t * (step * u_t)


@triton.jit
def _store_spans(
    h, spans, count, start, u_at, delta_at, B_at, channel, shift, rates, length, n, u_time, delta_time, B_time,
    N: tl.constexpr, SOFTPLUS: tl.constexpr
):  # fmt: skip
    """Recompute a chunk's states from h, the one at its start, and store those before each of its spans."""
    for i in range(0, count - 1):
        tl.store(_tile(spans + i * STATES * WARP, n * WARP), h)
        for t in tl.static_range(SPAN):
            now = start + i * SPAN + t
            u_t, raw, step = _inputs(u_at, delta_at, channel, shift, now, length, u_time, delta_time, SOFTPLUS)
            h = _advance(h, _column_at(B_at, now, length, B_time, n, N), rates, u_t, step)
    tl.store(_tile(spans + (count - 1) * STATES * WARP, n * WARP), h)
    tl.debug_barrier()  # a thread may load what another stored


@triton.jit
def _fold(x, ROWS: tl.constexpr, DONE: tl.constexpr, LEFT: tl.constexpr):
    """One level of a sum over lanes: x (ROWS, DONE, LEFT) -> (ROWS / 2, 2 DONE, LEFT / 2).

    Halves of the lanes exchange and add, and each half goes on with half of the rows, so that a level costs half of
    the one before; summing row by row would cost the same at every level.
    """
    x = tl.sum(tl.reshape(x, [2, ROWS // 2, DONE, 2, LEFT // 2]), axis=3)[:, :, :, None, :]
    mine = tl.arange(0, 2)[:, None, None, None, None] == tl.arange(0, 2)[None, None, None, :, None]
    return tl.reshape(tl.sum(tl.where(mine, x, 0.0), axis=0), [ROWS // 2, 2 * DONE, LEFT // 2])


@triton.jit
def _sum_lanes(x, y):
    """Sums over 32 lanes of two tiles [16, 32]: (32,), x's then y's, one a lane."""
    half = tl.arange(0, 2)[None, :, None] == 0
    x = tl.sum(tl.reshape(x, [16, 2, 16]), axis=1)[:, None, :]
    y = tl.sum(tl.reshape(y, [16, 2, 16]), axis=1)[:, None, :]
    z = _fold(_fold(tl.where(half, x, y), 16, 2, 16), 8, 4, 8)
    return tl.reshape(_fold(_fold(z, 4, 8, 4), 2, 16, 2), [32])


@triton.jit
def _undo(
    before, after, g, dA, dD, dbias, rates, skip, u_t, raw, step, t, length, n, lane, channel, channels, B_at, C_at,
    z_at, dy_at, du_at, ddelta_at, dz_at, dBC_at, B_time, C_time, z_time, dy_time, du_time, ddelta_time, dz_time,
    N: tl.constexpr, HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr
):  # fmt: skip
    """The gradients of step t, from the states before and after it and from g, the gradient of the one after.

    Returns g of the state before, and the sums dA, dD and dbias with the step's share.
    """
    at = tl.minimum(t, length - 1).to(tl.int64)
    real = lane < tl.where(t < length, channels, 0)  # lanes beyond the channels and steps beyond the end
    C_t = _column_at(C_at, t, length, C_time, n, N)
    dy = tl.load(_tile(dy_at + at * dy_time, channel), mask=real, other=0.0).to(tl.float32)
    if HAS_Z:
        z_t = tl.load(_tile(z_at + at * z_time, channel)).to(tl.float32)
        gate = _sigmoid(z_t)
        y_t = tl.sum(C_t * after, axis=0)[None, :] + skip * u_t
        dz = dy * y_t * gate * (1.0 + z_t * (1.0 - gate))
        tl.store(_tile(dz_at + at * dz_time, channel), dz.to(dz_at.dtype.element_ty), mask=real)
        dy *= z_t * gate

    g += dy * C_t
    x = step * u_t
    B_t = _column_at(B_at, t, length, B_time, n, N)
    m = tl.arange(0, 2 * STATES)
    inside = m < tl.where(t < length, 2 * STATES, 0)
    tl.store(dBC_at + at * (2 * STATES) + m, _sum_lanes(g * x, dy * after), mask=inside)
    dx = tl.sum(g * B_t, axis=0)[None, :]
    g *= tl.exp2(rates * step)
    ddecay = g * before  # of the exponent delta A
    draw = u_t * dx + tl.sum(ddecay * rates, axis=0)[None, :] * LN2
    if SOFTPLUS:
        draw *= _sigmoid(raw)
    tl.store(_tile(du_at + at * du_time, channel), (step * dx + skip * dy).to(du_at.dtype.element_ty), mask=real)
    tl.store(_tile(ddelta_at + at * ddelta_time, channel), draw.to(ddelta_at.dtype.element_ty), mask=real)
    return g, dA + ddecay * step, dD + dy * u_t, dbias + draw


@triton.jit(do_not_specialize=_sizes("sequences channels inner length", "u delta B C z dy du ddelta dz"))
def backward(
    u, delta, A, B, C, D, z, bias, dy, kept, spans, du, ddelta, dz, dBC, dA, dD, dbias, sequences, channels, inner,
    length, u_outer, u_inner, u_time, delta_outer, delta_inner, delta_time, B_outer, B_inner, B_time, C_outer, C_inner,
    C_time, z_outer, z_inner, z_time, dy_outer, dy_inner, dy_time, du_outer, du_inner, du_time, ddelta_outer,
    ddelta_inner, ddelta_time, dz_outer, dz_inner, dz_time, N: tl.constexpr, CHUNK: tl.constexpr, HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr
):  # fmt: skip
    """All gradients. A program takes a block of channels, and one sequence after another of its share.

    The caller does the last sums, so that no atomics are needed and results are reproducible: over blocks of channels
    dBC (blocks, sequences, length, dB's STATES then dC's); over programs of a block dA (programs, channels, N), dD and
    dbias (programs, channels). From the state kept at a chunk's start, those before each of its spans are recomputed
    into ``spans`` (all programs, CHUNK / SPAN, STATES, WARP), which the cache can hold; those within a span stay in
    registers.
    """
    blocks = tl.cdiv(channels, WARP)
    block, worker, workers = tl.program_id(0) % blocks, tl.program_id(0) // blocks, tl.num_programs(0) // blocks
    lane = block * WARP + tl.arange(0, WARP)[None, :]
    channel = tl.minimum(lane, channels - 1)
    n = tl.arange(0, STATES)[:, None]
    rates = _decay_rates(A, channel, n, N)
    skip = _per_channel(D, channel, HAS_D)
    shift = _per_channel(bias, channel, HAS_BIAS)
    dA_sum = tl.zeros([STATES, WARP], tl.float32)
    dD_sum = tl.zeros([1, WARP], tl.float32)
    dbias_sum = tl.zeros([1, WARP], tl.float32)
    spans += tl.program_id(0).to(tl.int64) * (CHUNK // SPAN * STATES * WARP) + tl.arange(0, WARP)[None, :]

    for sequence in range(worker, sequences, workers):
        u_at = _row(u, sequence, inner, u_outer, u_inner)
        delta_at = _row(delta, sequence, inner, delta_outer, delta_inner)
        z_at = _row(z, sequence, inner, z_outer, z_inner)
        B_at = _row(B, sequence, inner, B_outer, B_inner)
        C_at = _row(C, sequence, inner, C_outer, C_inner)
        dy_at = _row(dy, sequence, inner, dy_outer, dy_inner)
        du_at = _row(du, sequence, inner, du_outer, du_inner)
        ddelta_at = _row(ddelta, sequence, inner, ddelta_outer, ddelta_inner)
        dz_at = _row(dz, sequence, inner, dz_outer, dz_inner)
        dBC_at = dBC + (block * sequences + sequence).to(tl.int64) * length * (2 * STATES)
        g = tl.zeros([STATES, WARP], tl.float32)
        for later in range(0, tl.cdiv(length, CHUNK)):
            chunk = tl.cdiv(length, CHUNK) - 1 - later
            start = chunk * CHUNK
            lanes = sequences.to(tl.int64) * channels
            kept_at = kept + chunk * N * lanes + sequence * channels + channel
            h = tl.load(_tile(kept_at, n * lanes), mask=n < N, other=0.0)
            count = tl.cdiv(tl.minimum(CHUNK, length - start), SPAN)
            _store_spans(
                h, spans, count, start, u_at, delta_at, B_at, channel, shift, rates, length, n, u_time, delta_time,
                B_time, N, SOFTPLUS
            )  # fmt: skip
            for j in range(0, count):
                i = count - 1 - j
                t = start + i * SPAN
                u0, raw0, step0 = _inputs(u_at, delta_at, channel, shift, t, length, u_time, delta_time, SOFTPLUS)
                u1, raw1, step1 = _inputs(u_at, delta_at, channel, shift, t + 1, length, u_time, delta_time, SOFTPLUS)
                h0 = tl.load(_tile(spans + i * STATES * WARP, n * WARP))
                h1 = _advance(h0, _column_at(B_at, t, length, B_time, n, N), rates, u0, step0)
                h2 = _advance(h1, _column_at(B_at, t + 1, length, B_time, n, N), rates, u1, step1)
                g, dA_sum, dD_sum, dbias_sum = _undo(
                    h1, h2, g, dA_sum, dD_sum, dbias_sum, rates, skip, u1, raw1, step1, t + 1, length, n, lane, channel,
                    channels, B_at, C_at, z_at, dy_at, du_at, ddelta_at, dz_at, dBC_at, B_time, C_time, z_time, dy_time,
                    du_time, ddelta_time, dz_time, N, HAS_Z, SOFTPLUS
                )  # fmt: skip
                g, dA_sum, dD_sum, dbias_sum = _undo(
                    h0, h1, g, dA_sum, dD_sum, dbias_sum, rates, skip, u0, raw0, step0, t, length, n, lane, channel,
                    channels, B_at, C_at, z_at, dy_at, du_at, ddelta_at, dz_at, dBC_at, B_time, C_time, z_time, dy_time,
                    du_time, ddelta_time, dz_time, N, HAS_Z, SOFTPLUS
                )  # fmt: skip
            tl.debug_barrier()

    place = worker * channels + channel
    tl.store(_tile(dA + place.to(tl.int64) * N, n), dA_sum, mask=(lane < channels) & (n < N))
    tl.store(_tile(dD, place), dD_sum, mask=lane < channels)
    tl.store(_tile(dbias, place), dbias_sum, mask=lane < channels)
