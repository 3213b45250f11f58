"""Element-wise operations on two tensors of one shape in Triton, one pass forward and one backward (cf. pairs.c).

Importing this module needs Triton: call triton_runtime.why_missing() first.
"""

import torch
import triton
import triton.language as tl

from .triton_runtime import COMPILE

ELEMENTS, WARPS = 2048, 4  # of a program


class TritonPair(torch.autograd.Function):
    """``apply(name, a, b)``, "kl" or "silu_gate", for (B, C, …); only a and b are kept for the backward pass.

    The result is dense with channels last, in a's dtype; that of "kl" in float32.
    """

    @staticmethod
    def forward(ctx, name, a, b):
        ctx.name = name
        ctx.save_for_backward(a, b)
        y = _empty_rows(a, torch.float32 if name == "kl" else a.dtype)
        _launch(_forward, name, _rows(a), _rows(b), y)
        return _as_before(y, a)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        grad_a, grad_b = _empty_rows(a, a.dtype), _empty_rows(b, b.dtype)
        _launch(_backward, ctx.name, _rows(a), _rows(b), _rows(grad), grad_a, grad_b)
        return None, _as_before(grad_a, a), _as_before(grad_b, b)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """(B, C, …) -> (rows, C) with adjacent channels, copied only where they are not or rows are not evenly spaced."""
    rows = tensor.movedim(1, -1).reshape(-1, tensor.shape[1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _empty_rows(like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    channels = like.shape[1]
    return like.new_empty(like.numel() // channels if channels else 0, channels, dtype=dtype)


def _as_before(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return rows.view(like.movedim(1, -1).shape).movedim(-1, 1)


def _launch(kernel, name: str, *tensors: torch.Tensor) -> None:
    rows, channels = tensors[0].shape
    if rows * channels:
        with torch.cuda.device_of(tensors[0]):
            kernel[(triton.cdiv(rows * channels, ELEMENTS),)](
                *tensors, rows, channels, *[tensor.stride(0) for tensor in tensors], KL=name == "kl",
                ELEMENTS=ELEMENTS, num_warps=WARPS, **COMPILE
            )  # fmt: skip


@triton.jit
def _place(rows, channels, ELEMENTS: tl.constexpr):
    """The program's first row, its elements' rows from there, their channels, and which are there."""
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


@triton.jit
def _forward(a, b, y, rows, channels, a_step, b_step, y_step, KL: tl.constexpr, ELEMENTS: tl.constexpr):
    first, row, channel, there = _place(rows, channels, ELEMENTS)
    p = tl.load(a + first * a_step + row * a_step + channel, mask=there, other=0.0).to(tl.float32)
    q = tl.load(b + first * b_step + row * b_step + channel, mask=there, other=0.0).to(tl.float32)
    if KL:
        out = _sigmoid(p) * (_softplus(-q) - _softplus(-p))
    else:
        out = q * _sigmoid(q) * p
    tl.store(y + first * y_step + row * y_step + channel, out.to(y.dtype.element_ty), mask=there)


@triton.jit
def _backward(
    a, b, grad, grad_a, grad_b, rows, channels, a_step, b_step, grad_step, grad_a_step, grad_b_step, KL: tl.constexpr,
    ELEMENTS: tl.constexpr
):  # fmt: skip
    first, row, channel, there = _place(rows, channels, ELEMENTS)
    p = tl.load(a + first * a_step + row * a_step + channel, mask=there, other=0.0).to(tl.float32)
    q = tl.load(b + first * b_step + row * b_step + channel, mask=there, other=0.0).to(tl.float32)
    g = tl.load(grad + first * grad_step + row * grad_step + channel, mask=there, other=0.0).to(tl.float32)
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
    tl.store(at_a + row * grad_a_step + channel, of_a.to(grad_a.dtype.element_ty), mask=there)
    tl.store(at_b + row * grad_b_step + channel, of_b.to(grad_b.dtype.element_ty), mask=there)
