"""Depth-wise 3x3 convolution in Triton, channels-last, plain or with the gate of the feed-forward networks.

Only the input is kept for the backward pass. A row of an image is W C adjacent elements, in which a tap to the left or
right is C elements away. A program goes down ROWS rows, SPAN adjacent elements of each, whatever C, so that all lanes
are busy and read adjacent memory. Each input row is added to the three output rows that read it: the one above, its
own, and the one below. With the gate, the second half of the channels is computed beside the first.
"""

import math

import torch
import triton
import triton.language as tl

from . import channels_last
from .triton_runtime import COMPILE
from .tuning import launch_parameters

WARP_SPAN = 128  # elements of a row: four per thread
BACKWARD_PROGRAMS = 1024  # about so many, which bounds the memory of their sums


class TritonDepthwise(torch.autograd.Function):
    """``apply(x, weight, gated)``: x (B, C, H, W), weight (C, 1, 3, 3) -> (B, C, H, W), or (B, C / 2, H, W) gated."""

    @staticmethod
    def forward(ctx, x, weight, gated):
        x, taps = channels_last(x), _taps(weight)
        ctx.gated = gated
        ctx.save_for_backward(x, weight)
        y = x.new_empty(*x.shape[:3], x.shape[3] // 2 if gated else x.shape[3])
        _launch(_forward, math.prod(_tiles(y)), x, taps, y, y, GATED=gated, BACKWARD=False)
        return y.movedim(-1, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        taps, d = _taps(weight), channels_last(dy)
        if ctx.gated:
            dy, d = d, torch.empty_like(x)  # d: the gradient of the convolution, before the gate
            _launch(_forward, math.prod(_tiles(dy)), x, taps, dy, d, GATED=True, BACKWARD=True)
        dx, (blocks, across) = torch.empty_like(x), _tiles(x)
        workers = min(blocks, max(1, BACKWARD_PROGRAMS // across))
        sums = x.new_empty(workers, 9, *x.shape[2:], dtype=torch.float32)
        _launch(_backward, workers * across, x, taps, d, dx, sums)
        return dx.movedim(-1, 1), sums.sum((0, 2)).t().reshape(weight.shape).to(weight.dtype), None


def _taps(weight: torch.Tensor) -> torch.Tensor:
    """(C, 1, 3, 3) -> (9, C) in float32."""
    return weight.flatten(1).t().float().contiguous()


def _tiles(y: torch.Tensor) -> tuple[int, int]:
    """Blocks of rows of all images, and spans of a row."""
    (batch, height, width, channels), tuned = y.shape, launch_parameters(y.device)
    span = WARP_SPAN * tuned.depthwise_warps
    return batch * triton.cdiv(height, tuned.depthwise_rows), triton.cdiv(width * channels, span)


def _launch(kernel, programs: int, x: torch.Tensor, *tensors: torch.Tensor, **constants) -> None:
    rows, warps = launch_parameters(x.device).depthwise_rows, launch_parameters(x.device).depthwise_warps
    if x.numel():
        with torch.cuda.device_of(x):
            kernel[(programs,)](
                x, *tensors, *x.shape, ROWS=rows, SPAN=WARP_SPAN * warps, num_warps=warps, **constants, **COMPILE
            )


@triton.jit
def _place(tile, height, size, ROWS: tl.constexpr, SPAN: tl.constexpr):
    """A tile's first row among all images' and in its own, and its elements' places in rows of this size, [SPAN]."""
    across, down = tl.cdiv(size, SPAN), tl.cdiv(height, ROWS)
    top = (tile // across % down) * ROWS
    first = (tile // (across * down) * height + top).to(tl.int64)
    return first, top, (tile % across) * SPAN + tl.arange(0, SPAN)


@triton.jit
def _neighbours(row, at, channels, pixel, width, mask):
    """The elements one pixel to the left, here, and one to the right; 0 outside the image."""
    left = tl.load(row + at - channels, mask=mask & (pixel > 0) & (pixel < width), other=0.0)
    here = tl.load(row + at, mask=mask & (pixel < width), other=0.0)
    right = tl.load(row + at + channels, mask=mask & (pixel < width - 1), other=0.0)
    return left.to(tl.float32), here.to(tl.float32), right.to(tl.float32)


@triton.jit
def _three_taps(taps, first, channels, channel):
    at = taps + first * channels + channel
    return tl.load(at), tl.load(at + channels), tl.load(at + 2 * channels)


@triton.jit(do_not_specialize=["batch", "height", "width"])
def _forward(
    x, taps, y, d, batch, height, width, channels, GATED: tl.constexpr, BACKWARD: tl.constexpr, ROWS: tl.constexpr,
    SPAN: tl.constexpr
):  # fmt: skip
    """y, the convolution's result or SiLU(a) b of its halves (a, b); BACKWARD: d, the gradient of (a, b), from y's."""
    outputs = channels // 2 if GATED else channels
    first, top, place = _place(tl.program_id(0), height, width * outputs, ROWS, SPAN)
    pixel, channel = place // outputs, place % outputs
    at = pixel * channels + channel
    w0, w1, w2 = _three_taps(taps, 0, channels, channel)
    w3, w4, w5 = _three_taps(taps, 3, channels, channel)
    w6, w7, w8 = _three_taps(taps, 6, channels, channel)
    zero = tl.zeros([SPAN], tl.float32)
    done, a, begun = zero, zero, zero  # the output rows above an input row, at it, and below it
    if GATED:
        v0, v1, v2 = _three_taps(taps, 0, channels, channel + outputs)
        v3, v4, v5 = _three_taps(taps, 3, channels, channel + outputs)
        v6, v7, v8 = _three_taps(taps, 6, channels, channel + outputs)
        b_done, b, b_begun = zero, zero, zero
    for r in tl.static_range(ROWS + 2):
        mask = (top + r >= 1) & (top + r <= height)
        row = x + (first + r - 1) * width * channels
        left, here, right = _neighbours(row, at, channels, pixel, width, mask)
        done += w6 * left + w7 * here + w8 * right
        a += w3 * left + w4 * here + w5 * right
        begun = w0 * left + w1 * here + w2 * right
        if GATED:
            left, here, right = _neighbours(row, at + outputs, channels, pixel, width, mask)
            b_done += v6 * left + v7 * here + v8 * right
            b += v3 * left + v4 * here + v5 * right
            b_begun = v0 * left + v1 * here + v2 * right
        if r >= 2:
            inside = (top + r - 2 < height) & (pixel < width)
            out = (first + r - 2) * width
            if BACKWARD:
                gradient = tl.load(y + out * outputs + place, mask=inside, other=0.0).to(tl.float32)
                gate = 1.0 / (1.0 + tl.exp(-done))
                da, db = gradient * b_done * gate * (1.0 + done * (1.0 - gate)), gradient * done * gate
                tl.store(d + out * channels + at, da.to(d.dtype.element_ty), mask=inside)
                tl.store(d + out * channels + at + outputs, db.to(d.dtype.element_ty), mask=inside)
            else:
                value = done / (1.0 + tl.exp(-done)) * b_done if GATED else done
                tl.store(y + out * outputs + place, value.to(y.dtype.element_ty), mask=inside)
        done, a = a, begun
        if GATED:
            b_done, b = b, b_begun


@triton.jit(do_not_specialize=["batch", "height", "width"])
def _backward(x, taps, d, dx, sums, batch, height, width, channels, ROWS: tl.constexpr, SPAN: tl.constexpr):
    """dx, and sums (workers, 9, width, channels), the gradient of the weight to be added up.

    Output p reads input p + k through tap k; so an input q meets the gradients at q - k, for dx and for tap k's own.
    """
    size = width * channels
    across = tl.cdiv(size, SPAN)
    worker, workers = tl.program_id(0) // across, tl.num_programs(0) // across
    zero = tl.zeros([SPAN], tl.float32)
    s0, s1, s2, s3, s4, s5, s6, s7, s8 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    place = (tl.program_id(0) % across) * SPAN + tl.arange(0, SPAN)
    pixel, channel = place // channels, place % channels
    w0, w1, w2 = _three_taps(taps, 0, channels, channel)
    w3, w4, w5 = _three_taps(taps, 3, channels, channel)
    w6, w7, w8 = _three_taps(taps, 6, channels, channel)
    for block in range(worker, batch * tl.cdiv(height, ROWS), workers):
        first, top, _ = _place(block * across, height, size, ROWS, SPAN)
        done, now = zero, zero  # rows of dx, and the inputs there
        x_done, x_now = zero, zero
        for r in tl.static_range(ROWS + 2):
            mask = (top + r >= 1) & (top + r <= height)
            left, here, right = _neighbours(d + (first + r - 1) * size, place, channels, pixel, width, mask)
            x_begun = zero
            if r < ROWS:
                inside = (top + r < height) & (pixel < width)
                x_begun = tl.load(x + (first + r) * size + place, mask=inside, other=0.0).to(tl.float32)
            # This row of gradients is below the row `done` of dx, at `now`, and above `begun`.
            done += w0 * right + w1 * here + w2 * left
            now += w3 * right + w4 * here + w5 * left
            begun = w6 * right + w7 * here + w8 * left
            s0, s1, s2 = s0 + x_done * right, s1 + x_done * here, s2 + x_done * left
            s3, s4, s5 = s3 + x_now * right, s4 + x_now * here, s5 + x_now * left
            s6, s7, s8 = s6 + x_begun * right, s7 + x_begun * here, s8 + x_begun * left
            if r >= 2:
                inside = (top + r - 2 < height) & (pixel < width)
                tl.store(dx + (first + r - 2) * size + place, done.to(dx.dtype.element_ty), mask=inside)
            done, now, x_done, x_now = now, begun, x_now, x_begun

    sums += worker.to(tl.int64) * 9 * size + place
    tl.store(sums, s0, mask=place < size)
    tl.store(sums + size, s1, mask=place < size)
    tl.store(sums + 2 * size, s2, mask=place < size)
    tl.store(sums + 3 * size, s3, mask=place < size)
    tl.store(sums + 4 * size, s4, mask=place < size)
    tl.store(sums + 5 * size, s5, mask=place < size)
    tl.store(sums + 6 * size, s6, mask=place < size)
    tl.store(sums + 7 * size, s7, mask=place < size)
    tl.store(sums + 8 * size, s8, mask=place < size)
