"""Depth-wise 3x3 convolution in Triton, channels-last, plain or with the gate of the feed-forward networks.

Importing this module needs Triton: call triton_runtime.why_missing() first. Only the input is kept for the backward
pass. A line of an image is W C adjacent numbers, in which a tap to the left or right is C numbers away. A program
computes ROWS lines of SPAN adjacent numbers each, whatever C, so that all lanes are busy and read adjacent memory; its
input is read once per tap, all but the first time from the cache. With the gate, the second half of the channels is
computed beside the first.
"""

import torch
import triton
import triton.language as tl

from .triton_runtime import COMPILE

SPAN_BYTES, WARPS = 2048, 4
BACKWARD_PROGRAMS = 1024  # about so many, which bounds the memory of their sums


class TritonDepthwise(torch.autograd.Function):
    """``apply(x, weight, gated)``: x (B, C, H, W), weight (C, 1, 3, 3) -> (B, C, H, W), or (B, C / 2, H, W) gated."""

    @staticmethod
    def forward(ctx, x, weight, gated):
        x, taps = _channels_last(x), _taps(weight)
        ctx.gated = gated
        ctx.save_for_backward(x, weight)
        y = x.new_empty(*x.shape[:3], x.shape[3] // 2 if gated else x.shape[3])
        _launch(_forward, _programs(y), x, taps, y, GATED=gated)
        return y.movedim(-1, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        taps, d = _taps(weight), _channels_last(dy)
        if ctx.gated:
            dy, d = d, torch.empty_like(x)  # d: the gradient of the convolution, before the gate
            _launch(_gate_backward, _programs(dy), x, taps, dy, d)
        dx, (batch, height, width, channels) = torch.empty_like(x), x.shape
        across = triton.cdiv(width * channels, _span(x))
        workers = min(batch * triton.cdiv(height, _rows(x)), max(1, BACKWARD_PROGRAMS // across))
        sums = x.new_empty(workers, 9, width, channels, dtype=torch.float32)
        _launch(_backward, workers * across, x, taps, d, dx, sums)
        return dx.movedim(-1, 1), sums.sum((0, 2)).t().reshape(weight.shape).to(weight.dtype), None


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, H, W, C), dense; a copy only where it is not."""
    return tensor.movedim(1, -1).contiguous()


def _taps(weight: torch.Tensor) -> torch.Tensor:
    """(C, 1, 3, 3) -> (9, C) in float32."""
    return weight.flatten(1).t().float().contiguous()


def _span(x: torch.Tensor) -> int:
    return SPAN_BYTES // x.element_size()


def _rows(x: torch.Tensor) -> int:
    """Of half precision one, for which no layout needs to be converted between the input and the taps."""
    return 2 if x.dtype == torch.float32 else 1


def _programs(y: torch.Tensor) -> int:
    batch, height, width, channels = y.shape
    return batch * triton.cdiv(height, _rows(y)) * triton.cdiv(width * channels, _span(y))


def _launch(kernel, programs: int, x: torch.Tensor, *tensors: torch.Tensor, **constants) -> None:
    if x.numel():
        with torch.cuda.device_of(x):
            kernel[(programs,)](
                x, *tensors, *x.shape, ROWS=_rows(x), SPAN=_span(x), num_warps=WARPS, **constants, **COMPILE
            )


@triton.jit
def _place(tile, height, line, ROWS: tl.constexpr, SPAN: tl.constexpr):
    """A tile's first line among all images' and in its own, and its lines [ROWS, 1] and numbers of a line [1, SPAN]."""
    across, down = tl.cdiv(line, SPAN), tl.cdiv(height, ROWS)
    top = (tile // across % down) * ROWS
    first = (tile // (across * down) * height + top).to(tl.int64)
    return first, top, tl.arange(0, ROWS)[:, None], (tile % across) * SPAN + tl.arange(0, SPAN)[None, :]


@triton.jit
def _is_inside(row, pixel, height, width):
    return (row >= 0) & (row < height) & (pixel >= 0) & (pixel < width)


@triton.jit
def _convolve(corner, taps, top, row, pixel, channel, height, width, channels):
    """The convolution at lines ``row`` from the tile's first, at ``top`` in the image; 0 outside the image."""
    total = tl.zeros([row.shape[0], pixel.shape[1]], tl.float32)
    for k in tl.static_range(9):
        y, x = row + (k // 3 - 1), pixel + (k % 3 - 1)
        at = corner + (y * width + x) * channels + channel
        value = tl.load(at, mask=_is_inside(top + y, x, height, width), other=0.0).to(tl.float32)
        total += tl.load(taps + k * channels + channel) * value
    return total


@triton.jit
def _forward(x, taps, y, batch, height, width, channels, GATED: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr):
    outputs = channels // 2 if GATED else channels
    first, top, row, place = _place(tl.program_id(0), height, width * outputs, ROWS, SPAN)
    pixel, channel = place // outputs, place % outputs
    corner = x + first * width * channels
    out = _convolve(corner, taps, top, row, pixel, channel, height, width, channels)
    if GATED:
        b = _convolve(corner, taps, top, row, pixel, channel + outputs, height, width, channels)
        out = out / (1.0 + tl.exp(-out)) * b
    at = y + first * width * outputs + row * width * outputs + place
    tl.store(at, out.to(y.dtype.element_ty), mask=_is_inside(top + row, pixel, height, width))


@triton.jit
def _gate_backward(x, taps, dy, d, batch, height, width, channels, ROWS: tl.constexpr, SPAN: tl.constexpr):
    """d, the gradient of the convolution's result (a, b), from dy, that of SiLU(a) b."""
    outputs = channels // 2
    first, top, row, place = _place(tl.program_id(0), height, width * outputs, ROWS, SPAN)
    pixel, channel = place // outputs, place % outputs
    corner = x + first * width * channels
    a = _convolve(corner, taps, top, row, pixel, channel, height, width, channels)
    b = _convolve(corner, taps, top, row, pixel, channel + outputs, height, width, channels)
    inside = _is_inside(top + row, pixel, height, width)
    at = dy + first * width * outputs + row * width * outputs + place
    gradient = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    gate = 1.0 / (1.0 + tl.exp(-a))
    da, db = gradient * b * gate * (1.0 + a * (1.0 - gate)), gradient * a * gate
    at = d + first * width * channels + (row * width + pixel) * channels + channel
    tl.store(at, da.to(d.dtype.element_ty), mask=inside)
    tl.store(at + outputs, db.to(d.dtype.element_ty), mask=inside)


@triton.jit
def _met(corner, top, row, place, height, width, channels, DOWN: tl.constexpr, RIGHT: tl.constexpr):
    """The gradients of the outputs that read the tile's inputs through the tap (DOWN, RIGHT) from the centre."""
    row, place = row - DOWN, place - RIGHT * channels
    there = (top + row >= 0) & (top + row < height) & (place >= 0) & (place < width * channels)
    return tl.load(corner + row * width * channels + place, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _backward(x, taps, d, dx, sums, batch, height, width, channels, ROWS: tl.constexpr, SPAN: tl.constexpr):
    """dx, and sums (workers, 9, width, channels), the gradient of the weight to be added up.

    Output p reads input p + k through tap k; so an input q meets the gradients at q - k, for dx and for tap k's own.
    """
    line = width * channels
    across = tl.cdiv(line, SPAN)
    worker, workers = tl.program_id(0) // across, tl.num_programs(0) // across
    zero = tl.zeros([ROWS, SPAN], tl.float32)
    s0, s1, s2, s3, s4, s5, s6, s7, s8 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    place = (tl.program_id(0) % across) * SPAN + tl.arange(0, SPAN)[None, :]
    at_tap = taps + place % channels
    for block in range(worker, batch * tl.cdiv(height, ROWS), workers):
        first, top, row, _ = _place(block * across, height, line, ROWS, SPAN)
        inside = (top + row < height) & (place < line)
        at, corner = first * line + row * line + place, d + first * line
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        d0 = _met(corner, top, row, place, height, width, channels, -1, -1)
        d1 = _met(corner, top, row, place, height, width, channels, -1, 0)
        d2 = _met(corner, top, row, place, height, width, channels, -1, 1)
        total = _through(at_tap, channels, 0, d0, d1, d2)
        s0, s1, s2 = s0 + value * d0, s1 + value * d1, s2 + value * d2
        d3 = _met(corner, top, row, place, height, width, channels, 0, -1)
        d4 = _met(corner, top, row, place, height, width, channels, 0, 0)
        d5 = _met(corner, top, row, place, height, width, channels, 0, 1)
        total += _through(at_tap, channels, 3, d3, d4, d5)
        s3, s4, s5 = s3 + value * d3, s4 + value * d4, s5 + value * d5
        d6 = _met(corner, top, row, place, height, width, channels, 1, -1)
        d7 = _met(corner, top, row, place, height, width, channels, 1, 0)
        d8 = _met(corner, top, row, place, height, width, channels, 1, 1)
        total += _through(at_tap, channels, 6, d6, d7, d8)
        s6, s7, s8 = s6 + value * d6, s7 + value * d7, s8 + value * d8
        tl.store(dx + at, total.to(dx.dtype.element_ty), mask=inside)

    sums += worker.to(tl.int64) * 9 * line + place
    _store_sum(sums, s0, place < line)
    _store_sum(sums + line, s1, place < line)
    _store_sum(sums + 2 * line, s2, place < line)
    _store_sum(sums + 3 * line, s3, place < line)
    _store_sum(sums + 4 * line, s4, place < line)
    _store_sum(sums + 5 * line, s5, place < line)
    _store_sum(sums + 6 * line, s6, place < line)
    _store_sum(sums + 7 * line, s7, place < line)
    _store_sum(sums + 8 * line, s8, place < line)


@triton.jit
def _through(at_tap, channels, first, d0, d1, d2):
    """The sum of three gradients through taps first to first + 2."""
    at_tap += first * channels
    return tl.load(at_tap) * d0 + tl.load(at_tap + channels) * d1 + tl.load(at_tap + 2 * channels) * d2


@triton.jit
def _store_sum(at, values, there):
    tl.store(at, tl.sum(values, axis=0, keep_dims=True), mask=there)
