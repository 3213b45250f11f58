"""Mamba's short causal convolution with its SiLU in one Triton kernel each way, channels-last (cf. causal_conv.py).

Only x is kept for the backward pass. A program computes a tile [TIME, CHANNELS] of one sequence; CHANNELS divides the
number of channels, so that no lane is idle. x is read once per tap, all but the first time from the cache.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from . import empty_adjacent
from .selective_scan.triton_kernel import as_rows, row_strides
from .triton_runtime import COMPILE
from .tuning import launch_parameters

WIDTH = 4


def causal_conv_silu_triton(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """SiLU(bias + sum over k of weight_k x_{t-3+k}); float32 sums, the result in x's dtype and order of strides.

    Args:
        x: (*batch, d, l) in float32, bfloat16 or float16; weight: (d, 4); bias: (d,).
    """
    return _CausalConvSilu.apply(as_rows(x), weight, bias).reshape(x.shape)


def tile_shape(channels: int, elements: int) -> tuple[int, int]:
    """(TIME, CHANNELS): CHANNELS is the largest power of two up to 32 that divides the channels."""
    columns = min(32, channels & -channels)
    return elements // columns, columns


class _CausalConvSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        y, weight32, bias32 = empty_adjacent(x), weight.float().contiguous(), bias.float().contiguous()
        _, inner, channels, length = x.shape
        tuned = launch_parameters(x.device)
        shape = tile_shape(channels, tuned.conv_tile)
        with torch.cuda.device_of(x):
            _forward[_grid(x, shape)](
                x, weight32, bias32, y, channels, inner, length, *row_strides(x, y), *shape, num_warps=tuned.conv_warps,
                **COMPILE
            )  # fmt: skip
        ctx.tuned = tuned
        ctx.save_for_backward(x, weight, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, bias = ctx.saved_tensors
        dy, dx = as_rows(dy), empty_adjacent(x)
        weight32, bias32 = weight.float().contiguous(), bias.float().contiguous()
        outer, inner, channels, length = x.shape
        shape = tile_shape(channels, ctx.tuned.conv_tile)
        blocks = triton.cdiv(length, shape[0])
        sums = x.new_empty(outer * inner * blocks, WIDTH + 1, channels, dtype=torch.float32)
        with torch.cuda.device_of(x):
            _backward[_grid(x, shape)](
                x, weight32, bias32, dy, dx, sums, channels, inner, length, *row_strides(x, dy, dx), *shape,
                num_warps=ctx.tuned.conv_warps, **COMPILE
            )  # fmt: skip
        sums = sums.sum(0)
        return dx, sums[:WIDTH].t().to(weight.dtype), sums[WIDTH].to(bias.dtype)


def _grid(x: torch.Tensor, shape: tuple[int, int]) -> tuple[int]:
    outer, inner, channels, length = x.shape
    time, columns = shape
    return (outer * inner * triton.cdiv(length, time) * (channels // columns),)


@triton.jit
def _place(channels, length, TIME: tl.constexpr, CHANNELS: tl.constexpr):
    """The program's (sequence, block of steps) as one number, sequence, steps [TIME, 1] and channels [CHANNELS]."""
    columns, blocks = channels // CHANNELS, tl.cdiv(length, TIME)
    row = tl.program_id(0) // columns
    t = (row % blocks) * TIME + tl.arange(0, TIME)[:, None]
    return row, row // blocks, t, (tl.program_id(0) % columns) * CHANNELS + tl.arange(0, CHANNELS)


@triton.jit
def _begin(tensor, sequence, inner, channel, outer_stride, inner_stride):
    row = (sequence // inner).to(tl.int64) * outer_stride + (sequence % inner).to(tl.int64) * inner_stride
    return tensor + row + channel[None, :]


@triton.jit
def _at(tensor, t, length, stride):
    """The values at steps t; 0 outside the sequence."""
    return tl.load(tensor + t.to(tl.int64) * stride, mask=(t >= 0) & (t < length), other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["inner", "length"])
def _forward(
    x, weight, bias, y, channels, inner, length, x_outer, x_inner, x_time, y_outer, y_inner, y_time, TIME: tl.constexpr,
    CHANNELS: tl.constexpr
):  # fmt: skip
    _, sequence, t, channel = _place(channels, length, TIME, CHANNELS)
    x_at = _begin(x, sequence, inner, channel, x_outer, x_inner)
    total = tl.load(bias + channel)[None, :] + tl.zeros([TIME, CHANNELS], tl.float32)
    for k in tl.static_range(4):
        total += tl.load(weight + channel * 4 + k)[None, :] * _at(x_at, t - 3 + k, length, x_time)
    y_at = _begin(y, sequence, inner, channel, y_outer, y_inner) + t.to(tl.int64) * y_time
    tl.store(y_at, (total / (1.0 + tl.exp(-total))).to(y.dtype.element_ty), mask=t < length)


@triton.jit
def _dsum(dy_at, t, length, dy_time, w0, w1, w2, w3, shift, x0, x1, x2, x3):
    """The gradient of the sum under the SiLU at steps t, whose inputs are x0 to x3."""
    total = shift + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
    gate = 1.0 / (1.0 + tl.exp(-total))
    return _at(dy_at, t, length, dy_time) * gate * (1.0 + total * (1.0 - gate))


@triton.jit(do_not_specialize=["inner", "length"])
def _backward(
    x, weight, bias, dy, dx, sums, channels, inner, length, x_outer, x_inner, x_time, dy_outer, dy_inner, dy_time,
    dx_outer, dx_inner, dx_time, TIME: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """dx, and sums (sequences x time blocks, 4 + 1, channels), the gradients of weight and bias to be added up."""
    row, sequence, t, channel = _place(channels, length, TIME, CHANNELS)
    w0, w1 = tl.load(weight + channel * 4)[None, :], tl.load(weight + channel * 4 + 1)[None, :]
    w2, w3 = tl.load(weight + channel * 4 + 2)[None, :], tl.load(weight + channel * 4 + 3)[None, :]
    shift = tl.load(bias + channel)[None, :]
    x_at = _begin(x, sequence, inner, channel, x_outer, x_inner)
    dy_at = _begin(dy, sequence, inner, channel, dy_outer, dy_inner)

    # A step's input is in its own sum and in the next three, whose gradients are recomputed here.
    x0, x1 = _at(x_at, t - 3, length, x_time), _at(x_at, t - 2, length, x_time)
    x2, x3 = _at(x_at, t - 1, length, x_time), _at(x_at, t, length, x_time)
    x4, x5 = _at(x_at, t + 1, length, x_time), _at(x_at, t + 2, length, x_time)
    x6 = _at(x_at, t + 3, length, x_time)
    d0 = _dsum(dy_at, t, length, dy_time, w0, w1, w2, w3, shift, x0, x1, x2, x3)
    d1 = _dsum(dy_at, t + 1, length, dy_time, w0, w1, w2, w3, shift, x1, x2, x3, x4)
    d2 = _dsum(dy_at, t + 2, length, dy_time, w0, w1, w2, w3, shift, x2, x3, x4, x5)
    d3 = _dsum(dy_at, t + 3, length, dy_time, w0, w1, w2, w3, shift, x3, x4, x5, x6)
    dx_at = _begin(dx, sequence, inner, channel, dx_outer, dx_inner) + t.to(tl.int64) * dx_time
    tl.store(dx_at, (w3 * d0 + w2 * d1 + w1 * d2 + w0 * d3).to(dx.dtype.element_ty), mask=t < length)

    sums += row.to(tl.int64) * 5 * channels + channel
    tl.store(sums, tl.sum(d0 * x0, axis=0))
    tl.store(sums + channels, tl.sum(d0 * x1, axis=0))
    tl.store(sums + 2 * channels, tl.sum(d0 * x2, axis=0))
    tl.store(sums + 3 * channels, tl.sum(d0 * x3, axis=0))
    tl.store(sums + 4 * channels, tl.sum(d0, axis=0))
