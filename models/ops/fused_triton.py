"""1x1 convolutions in Triton with what stands before and behind them in a block, for inference.

The norm is computed where W_in reads its input, the gate of Eq. 5 where W_out does, and the residual is added where the
sum is written, so that none of these takes a pass over memory of its own. Features are (B, H, W, C) with adjacent
channels, dense unless said otherwise. Products are those of a block of pixels and a block of W, in the features' dtype,
fp32 in TF32; sums are in fp32.
"""

import math

import torch
import triton
import triton.language as tl

from .triton_runtime import COMPILE
from .tuning import LaunchParameters, launch_parameters

GATED_OUTPUTS = 256  # of a program; above this, several programs share their pixels, and each computes W_in [h, v]
# Not specialised: a new size of image compiles nothing.
SIZES = ["pixels", "height", "width", "h_image", "h_row", "h_column", "v_image", "v_row", "v_column"]
STAGES = 2  # of loads ahead of a product: more would take the shared memory of small GPUs


def normed_product(x, norm_weight, norm_bias, eps, W):
    """W norm(x): W (N, C) -> (B, H, W, N)."""
    made, pixels = x.new_empty(*x.shape[:3], len(W)), math.prod(x.shape[:3])
    _launch(_normed_product, [x, norm_weight, norm_bias, W, made], [pixels, eps], [x.shape[3], len(W)])
    return made


def product(values, W, x=None):
    """W values, or x + W values: values (B, H, W, N) with pixels evenly apart, W (C, N), x (B, H, W, C)."""
    made, pixels = values.new_empty(*values.shape[:3], len(W)), math.prod(values.shape[:3])
    tensors, sizes = [values, W, made if x is None else x, made], [values.shape[3], len(W), values.stride(2)]
    _launch(_product, tensors, [pixels], sizes, ADD=x is not None)
    return made


def gated_projection(x, h, v, gate, W_in, W_out):
    """x + W_out (SiLU(gate) W_in [h, v]): h, v (B, H, W, C / 2) of any strides, gate with pixels evenly apart."""
    made, (batch, height, width, half) = torch.empty_like(x), h.shape
    strides = [stride for part in (h, v) for stride in part.stride()[:3]]
    tensors, pixels = [x, h, v, gate, W_in, W_out, made], batch * height * width
    _launch(_gated_projection, tensors, [pixels, height, width], [half, gate.stride(2), *strides])
    return made


def _launch(kernel, tensors, image_sizes, sizes, **flags):
    """Run a kernel, whose result is the last tensor.

    Sizes and strides of channels are given in a unit that divides them all: so the compiler knows how many adjacent
    numbers it may load at once.
    """
    made, unit = tensors[-1], math.gcd(16, *sizes)
    constants, compiled = options(kernel, made.shape[3], launch_parameters(made.device), unit)
    pixels, outputs = math.prod(made.shape[:3]), made.shape[3]
    programs = triton.cdiv(pixels, constants["PIXELS"]) * triton.cdiv(outputs, constants["OUTPUTS"])
    if programs:
        with torch.cuda.device_of(made):
            units = [size // unit for size in sizes]
            kernel[(programs,)](*tensors, *image_sizes, *units, **flags, **constants, **compiled, **COMPILE)


def options(kernel, channels: int, tuned: LaunchParameters, unit: int) -> tuple[dict, dict]:
    """A kernel's (constants, compile options) for so many output channels."""
    gated = kernel is _gated_projection
    pixels, most = (tuned.gated_pixels, GATED_OUTPUTS) if gated else (tuned.product_pixels, tuned.product_outputs)
    outputs = min(most, max(16, triton.next_power_of_2(channels)))  # tensor cores need 16
    constants = {"PIXELS": pixels, "OUTPUTS": outputs, "INNER": tuned.product_inner, "UNIT": unit}
    return constants, {"num_warps": 8 if pixels * outputs > 64 * 128 else 4, "num_stages": STAGES}


@triton.jit
def _place(channels, PIXELS: tl.constexpr, OUTPUTS: tl.constexpr):
    """A program's pixels and output channels; adjacent programs read the same pixels, all but one from the cache."""
    parts = tl.cdiv(channels, OUTPUTS)
    pixel = (tl.program_id(0) // parts).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    return pixel, (tl.program_id(0) % parts) * OUTPUTS + tl.arange(0, OUTPUTS)


@triton.jit
def _weights(W, row, rows, column, columns, step):
    """The block W[row, column] transposed; 0 outside of W (rows, columns), whose rows are step elements apart."""
    mask = (row < rows)[None, :] & (column < columns)[:, None]
    return tl.load(W + row[None, :] * step + column[:, None], mask=mask, other=0.0)


@triton.jit(do_not_specialize=SIZES[:1])
def _normed_product(
    x, norm_weight, norm_bias, W, made, pixels, eps, channels, outputs, PIXELS: tl.constexpr, OUTPUTS: tl.constexpr,
    INNER: tl.constexpr, UNIT: tl.constexpr
):  # fmt: skip
    channels, outputs = channels * UNIT, outputs * UNIT
    pixel, output = _place(outputs, PIXELS, OUTPUTS)
    inner, inside = tl.arange(0, INNER), (pixel < pixels)[:, None]
    at = x + pixel[:, None] * channels + inner[None, :]

    # The pixels are read three times, twice of which from the cache.
    total = tl.zeros([PIXELS, INNER], tl.float32)
    for c in range(0, channels, INNER):
        total += tl.load(at + c, mask=inside & (c + inner < channels)[None, :], other=0.0).to(tl.float32)
    mean = (tl.sum(total, axis=1) / channels)[:, None]
    total = tl.zeros([PIXELS, INNER], tl.float32)
    for c in range(0, channels, INNER):
        mask = inside & (c + inner < channels)[None, :]
        centred = tl.where(mask, tl.load(at + c, mask=mask, other=0.0).to(tl.float32) - mean, 0.0)
        total += centred * centred
    scale = tl.rsqrt(tl.sum(total, axis=1) / channels + eps)[:, None]

    total = tl.zeros([PIXELS, OUTPUTS], tl.float32)
    for c in range(0, channels, INNER):
        channel = c + inner
        values = tl.load(at + c, mask=inside & (channel < channels)[None, :], other=0.0).to(tl.float32)
        weight = tl.load(norm_weight + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :]
        bias = tl.load(norm_bias + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :]
        normed = ((values - mean) * scale * weight + bias).to(made.dtype.element_ty)
        weights = _weights(W, output, outputs, channel, channels, channels)
        total = tl.dot(normed, weights, total, input_precision="tf32")
    at = made + pixel[:, None] * outputs + output[None, :]
    tl.store(at, total.to(made.dtype.element_ty), mask=inside & (output < outputs)[None, :])


@triton.jit(do_not_specialize=SIZES[:1])
def _product(
    values, W, x, made, pixels, channels, outputs, step, ADD: tl.constexpr, PIXELS: tl.constexpr,
    OUTPUTS: tl.constexpr, INNER: tl.constexpr, UNIT: tl.constexpr
):  # fmt: skip
    channels, outputs, step = channels * UNIT, outputs * UNIT, step * UNIT
    pixel, output = _place(outputs, PIXELS, OUTPUTS)
    inner, inside = tl.arange(0, INNER), (pixel < pixels)[:, None]
    total = tl.zeros([PIXELS, OUTPUTS], tl.float32)
    for c in range(0, channels, INNER):
        channel = c + inner
        mask = inside & (channel < channels)[None, :]
        block = tl.load(values + pixel[:, None] * step + channel[None, :], mask=mask, other=0.0)
        weights = _weights(W, output, outputs, channel, channels, channels)
        total = tl.dot(block, weights, total, input_precision="tf32")
    at, kept = pixel[:, None] * outputs + output[None, :], inside & (output < outputs)[None, :]
    if ADD:
        total += tl.load(x + at, mask=kept, other=0.0).to(tl.float32)
    tl.store(made + at, total.to(made.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=SIZES)
def _gated_projection(
    x, h, v, gate, W_in, W_out, made, pixels, height, width, half, gate_step, h_image, h_row, h_column, v_image, v_row,
    v_column, PIXELS: tl.constexpr, OUTPUTS: tl.constexpr, INNER: tl.constexpr, UNIT: tl.constexpr
):  # fmt: skip
    half *= UNIT
    channels = 2 * half
    pixel, output = _place(channels, PIXELS, OUTPUTS)
    inside, inner = (pixel < pixels)[:, None], tl.arange(0, INNER)
    image, row, column = pixel // (height * width), pixel // width % height, pixel % width
    h += ((image * h_image + row * h_row + column * h_column) * UNIT)[:, None]
    v += ((image * v_image + row * v_row + column * v_column) * UNIT)[:, None]
    gate += (pixel * gate_step * UNIT)[:, None]

    total = tl.zeros([PIXELS, OUTPUTS], tl.float32)
    for m in range(0, channels, INNER):
        middle = m + inner
        mixed = tl.zeros([PIXELS, INNER], tl.float32)  # W_in [h, v]
        for c in range(0, half, INNER):
            channel = c + inner
            mask = inside & (channel < half)[None, :]
            weights = _weights(W_in, middle, channels, channel, half, channels)
            values = tl.load(h + channel[None, :], mask=mask, other=0.0)
            mixed = tl.dot(values, weights, mixed, input_precision="tf32")
            weights = _weights(W_in + half, middle, channels, channel, half, channels)
            values = tl.load(v + channel[None, :], mask=mask, other=0.0)
            mixed = tl.dot(values, weights, mixed, input_precision="tf32")
        mask = inside & (middle < channels)[None, :]
        y = tl.load(gate + middle[None, :], mask=mask, other=0.0).to(tl.float32)
        mixed = (mixed * y * tl.sigmoid(y)).to(made.dtype.element_ty)
        weights = _weights(W_out, output, channels, middle, channels, channels)
        total = tl.dot(mixed, weights, total, input_precision="tf32")
    at, kept = pixel[:, None] * channels + output[None, :], inside & (output < channels)[None, :]
    total += tl.load(x + at, mask=kept, other=0.0).to(tl.float32)
    tl.store(made + at, total.to(made.dtype.element_ty), mask=kept)
