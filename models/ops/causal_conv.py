"""Mamba's short causal convolution with its SiLU (Gu & Dao 2023, Section 3.4).

y_t = SiLU(bias + sum over k of weight_k x_{t-3+k}): each step sees itself and the three before it.
"""

from ctypes import byref, c_int32, c_int64, c_void_p

import torch
import torch.nn.functional as F

from . import channels_adjacent, empty_adjacent
from .native.compiler import call, compiled
from .native.view import View, address, sizes, structure
from .selective_scan import resolve_backend


def causal_conv_silu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, backend: str) -> torch.Tensor:
    """(*batch, d, l) -> the same shape and order of strides.

    Args:
        weight: (d, width); bias: (d,).
        backend: the scan's, see ``selective_scan``; "cpu" and "triton" have a kernel for this too, of width 4.
    """
    if torch.compiler.is_compiling():
        return causal_conv_silu_ref(x, weight, bias)  # which the compiler fuses
    backend = resolve_backend(backend, x.device, x.dtype)
    fits = weight.shape == (x.shape[-2], 4) and bias.shape == weight.shape[:1]
    if backend == "cpu" and x.dim() <= 4 and fits:
        return _CausalConvSilu.apply(channels_adjacent(x.float()), weight.float(), bias.float()).to(x.dtype)
    if backend == "triton" and fits:
        from .causal_conv_triton import causal_conv_silu_triton  # imported here: not every machine has Triton

        return causal_conv_silu_triton(x, weight, bias)
    return causal_conv_silu_ref(x, weight, bias)


def causal_conv_silu_ref(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch, by shifted multiply-adds: a depth-wise Conv1d would copy channels-last x."""
    width, length = weight.shape[1], x.shape[-1]
    x = F.pad(x.transpose(-1, -2), (0, 0, width - 1, 0))  # (*batch, l + width - 1, d)
    y = bias + sum(weight[:, k] * x[..., k : k + length, :] for k in range(width))
    return F.silu(y).transpose(-1, -2)


# conv.c's Conv and Grad.
_Parameters = structure(
    (View, "x y"), (c_void_p, "weight bias"), (c_int64, "batch0 batch1 channels length"), (c_int32, "threads")
)
_Gradients = structure((View, "x"), (c_void_p, "weight bias"))


class _CausalConvSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        weight, bias, y = weight.t().contiguous(), bias.contiguous(), empty_adjacent(x)
        compiled("conv.c").conv_forward(byref(_parameters(x, y, weight, bias)))  # which allocates nothing
        ctx.save_for_backward(x, weight, bias)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y):
        x, weight, bias = ctx.saved_tensors
        grad_y, grad_x, threads = channels_adjacent(grad_y), empty_adjacent(x), torch.get_num_threads()
        grad_weight, grad_bias = weight.new_zeros(threads, *weight.shape), bias.new_zeros(threads, *bias.shape)
        gradients = _Gradients(View.of(grad_x), address(grad_weight), address(grad_bias))
        call(compiled("conv.c").conv_backward, _parameters(x, grad_y, weight, bias), gradients)
        return grad_x, grad_weight.sum(0).t(), grad_bias.sum(0)


def _parameters(x, y, weight, bias):
    views, pointers = map(View.of, (x, y)), map(address, (weight, bias))
    return _Parameters(*views, *pointers, *sizes(x), torch.get_num_threads())
