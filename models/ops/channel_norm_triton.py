"""Layer normalisation over the channels of each pixel in Triton, channels-last, in fp32 inside.

Only the input is kept for the backward pass. A program normalises ROWS pixels, BLOCK channels each, a power of two and
at least as many as there are.
"""

import torch
import triton
import triton.language as tl

from . import from_pixels, to_pixels
from .triton_runtime import COMPILE
from .tuning import launch_parameters

WARPS = 4
BACKWARD_PROGRAMS = 1024  # limit, which bounds the memory of their sums


class TritonChannelNorm(torch.autograd.Function):
    """``apply(x, weight, bias, eps, dtype)``: x (B, C, …) normalised over C, in dtype."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, dtype):
        rows = to_pixels(x)
        y, weight, bias = rows.new_empty(rows.shape, dtype=dtype), weight.contiguous(), bias.contiguous()
        ctx.eps = eps
        ctx.save_for_backward(x, weight, bias)
        if rows.numel():
            block, at_once = _sizes(rows)
            with torch.cuda.device_of(x):
                _forward[(triton.cdiv(len(rows), at_once),)](
                    rows, weight, bias, y, *rows.shape, rows.stride(0), eps, ROWS=at_once, BLOCK=block,
                    num_warps=WARPS, **COMPILE
                )  # fmt: skip
        return from_pixels(y, x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight, bias = ctx.saved_tensors
        rows, dy = to_pixels(x), to_pixels(dy)
        dx = rows.new_empty(rows.shape)
        block, at_once = _sizes(rows)
        programs = min(BACKWARD_PROGRAMS, triton.cdiv(len(rows), at_once))
        sums = rows.new_empty(programs, 2, rows.shape[1], dtype=torch.float32)
        if rows.numel():
            with torch.cuda.device_of(rows):
                _backward[(programs,)](
                    rows, weight, dy, dx, sums, *rows.shape, rows.stride(0), dy.stride(0), ctx.eps, ROWS=at_once,
                    BLOCK=block, num_warps=WARPS, **COMPILE
                )  # fmt: skip
        dweight, dbias = sums.sum(0)
        return from_pixels(dx, x), dweight.to(weight.dtype), dbias.to(bias.dtype), None, None


def _sizes(rows: torch.Tensor) -> tuple[int, int]:
    """(BLOCK, ROWS)."""
    block = triton.next_power_of_2(rows.shape[1])
    return block, max(1, launch_parameters(rows.device).norm_elements // block)


@triton.jit
def _normalised(x, row, channel, rows, channels, step, eps):
    """((x - mean) / deviation, 1 / deviation) of these rows, [ROWS, BLOCK] and [ROWS, 1]; 0 outside."""
    mask = (row < rows) & (channel < channels)
    values = tl.load(x + row.to(tl.int64) * step + channel, mask=mask, other=0.0).to(tl.float32)
    centred = tl.where(mask, values - tl.sum(values, axis=1, keep_dims=True) / channels, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=1, keep_dims=True) / channels + eps)
    return centred * scale, scale


@triton.jit(do_not_specialize=["rows"])
def _forward(x, weight, bias, y, rows, channels, step, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    normalised, _ = _normalised(x, row, channel, rows, channels, step, eps)
    w = tl.load(weight + channel, mask=channel < channels, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    at = y + row.to(tl.int64) * channels + channel
    tl.store(at, (normalised * w + shift).to(y.dtype.element_ty), mask=(row < rows) & (channel < channels))


@triton.jit(do_not_specialize=["rows"])
def _backward(x, weight, dy, dx, sums, rows, channels, step, dy_step, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """dx, and sums (programs, 2, channels), the gradients of weight and bias to be added up."""
    channel = tl.arange(0, BLOCK)[None, :]
    w = tl.load(weight + channel, mask=channel < channels, other=0.0).to(tl.float32)
    dweight, dbias = tl.zeros([ROWS, BLOCK], tl.float32), tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        mask = (row < rows) & (channel < channels)
        normalised, scale = _normalised(x, row, channel, rows, channels, step, eps)
        d = tl.load(dy + row.to(tl.int64) * dy_step + channel, mask=mask, other=0.0).to(tl.float32)
        dweight += d * normalised
        dbias += d
        d *= w
        mean = tl.sum(d, axis=1, keep_dims=True) / channels
        along = tl.sum(d * normalised, axis=1, keep_dims=True) / channels
        at = dx + row.to(tl.int64) * channels + channel
        tl.store(at, (scale * (d - mean - normalised * along)).to(dx.dtype.element_ty), mask=mask)
    sums += tl.program_id(0) * 2 * channels + channel
    tl.store(sums, tl.sum(dweight, axis=0, keep_dims=True), mask=channel < channels)
    tl.store(sums + channels, tl.sum(dbias, axis=0, keep_dims=True), mask=channel < channels)
