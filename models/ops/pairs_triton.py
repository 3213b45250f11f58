"""Element-wise operations on two tensors of one shape in Triton, one pass forward and one backward (cf. pairs.c)."""

import torch
import triton
import triton.language as tl

from . import from_pixels, to_pixels
from .triton_runtime import COMPILE

ELEMENTS, WARPS = 2048, 4  # of a program


def compute(operation: str, a: torch.Tensor, b: torch.Tensor, grad: torch.Tensor | None = None) -> list[torch.Tensor]:
    """y, or the gradients of a and b where y's is given, of "kl" or "silu_gate".

    The result is dense with channels last, in a's dtype; that of "kl" in float32.
    """
    kl = operation == "kl"
    if grad is None:
        kernel, given, made = _forward, [a, b], [torch.float32 if kl else a.dtype]
    else:
        kernel, given, made = _backward, [a, b, grad], [a.dtype, b.dtype]
    pixels = [to_pixels(tensor) for tensor in given]
    rows, channels = pixels[0].shape
    outputs = [pixels[0].new_empty(rows, channels, dtype=dtype) for dtype in made]
    tensors = [*pixels, *outputs]
    if rows * channels:
        with torch.cuda.device_of(a):
            kernel[(triton.cdiv(rows * channels, ELEMENTS),)](
                *tensors, rows, channels, *[tensor.stride(0) for tensor in tensors], KL=kl, ELEMENTS=ELEMENTS,
                num_warps=WARPS, **COMPILE
            )  # fmt: skip
    return [from_pixels(output, a) for output in outputs]


@triton.jit
def _place(rows, channels, ELEMENTS: tl.constexpr):
    """The program's first row, its elements' rows from there, their channels, and the mask of those inside."""
    start = tl.program_id(0).to(tl.int64) * ELEMENTS
    first = start // channels
    local = (start - first * channels).to(tl.int32) + tl.arange(0, ELEMENTS)
    row = local // channels
    return first, row, local % channels, first + row < rows


@triton.jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def _softplus(x):
    """log(1 + e^x), with an absolute error of one rounding."""
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit(do_not_specialize=["rows"])
def _forward(a, b, y, rows, channels, a_step, b_step, y_step, KL: tl.constexpr, ELEMENTS: tl.constexpr):
    first, row, channel, mask = _place(rows, channels, ELEMENTS)
    p = tl.load(a + first * a_step + row * a_step + channel, mask=mask, other=0.0).to(tl.float32)
    q = tl.load(b + first * b_step + row * b_step + channel, mask=mask, other=0.0).to(tl.float32)
    if KL:
        out = _sigmoid(p) * (_softplus(-q) - _softplus(-p))
    else:
        out = q * _sigmoid(q) * p
    tl.store(y + first * y_step + row * y_step + channel, out.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _backward(
    a, b, grad, grad_a, grad_b, rows, channels, a_step, b_step, grad_step, grad_a_step, grad_b_step, KL: tl.constexpr,
    ELEMENTS: tl.constexpr
):  # fmt: skip
    first, row, channel, mask = _place(rows, channels, ELEMENTS)
    p = tl.load(a + first * a_step + row * a_step + channel, mask=mask, other=0.0).to(tl.float32)
    q = tl.load(b + first * b_step + row * b_step + channel, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad + first * grad_step + row * grad_step + channel, mask=mask, other=0.0).to(tl.float32)
    if KL:
        s = _sigmoid(p)
        kl = s * (_softplus(-q) - _softplus(-p))
        of_a = g * _sigmoid(-p) * (kl + s)
        of_b = -g * s * _sigmoid(-q)
    else:
        s = _sigmoid(q)
        of_a = g * q * s
        of_b = g * p * s * (1.0 + q * (1.0 - s))
    at_a, at_b = grad_a + first * grad_a_step, grad_b + first * grad_b_step
    tl.store(at_a + row * grad_a_step + channel, of_a.to(grad_a.dtype.element_ty), mask=mask)
    tl.store(at_b + row * grad_b_step + channel, of_b.to(grad_b.dtype.element_ty), mask=mask)
