"""Depth-wise 3x3 convolution, alone or with the gate of the feed-forward networks, SiLU(a) * b for its halves (a, b).

One pass over channels-last features: in Triton on a GPU, with the gate also in C on a CPU, compiled at first use
(native/depthwise.c); or PyTorch's own operations.
"""

from ctypes import c_int32, c_int64, c_void_p

import torch
import torch.nn.functional as F
from torch import nn

from . import triton_runtime
from .native.compiler import call, compiled
from .native.view import address, runs_in_c, structure


def supports(conv: nn.Conv2d) -> bool:
    """Whether ``conv`` is what this file computes: one 3x3 filter per channel, zero padding, no bias."""
    form = (conv.kernel_size, conv.padding, conv.stride, conv.dilation, conv.padding_mode, conv.bias)
    return form == ((3, 3), (1, 1), (1, 1), (1, 1), "zeros", None) and conv.weight.shape[:2] == (conv.in_channels, 1)


def depthwise(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> the same shape, zero padding.

    Args:
        weight: (C, 1, 3, 3), one filter per channel.
    """
    if _fits(x, weight) and triton_runtime.runs(x):
        return _in_triton(x, weight, gated=False)
    return depthwise_ref(x, weight)


def depthwise_ref(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch."""
    return F.conv2d(x, weight, padding=1, groups=len(weight))


def gated_depthwise(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, C / 2, H, W), zero padding; weight as for ``depthwise``."""
    if _fits(x, weight) and triton_runtime.runs(x):
        return _in_triton(x, weight, gated=True)
    if _fits(x, weight) and runs_in_c("depthwise.c", x, weight):
        return _GatedDepthwise.apply(x.contiguous(memory_format=torch.channels_last), weight)
    return gated_depthwise_ref(x, weight)


def gated_depthwise_ref(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch."""
    a, b = depthwise_ref(x, weight).chunk(2, dim=1)
    return F.silu(a) * b


def _fits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the kernels can take these; PyTorch's convolution names what does not fit."""
    return x.dim() == 4 and weight.shape == (x.shape[1], 1, 3, 3)


def _in_triton(x: torch.Tensor, weight: torch.Tensor, gated: bool) -> torch.Tensor:
    from .depthwise_triton import TritonDepthwise  # imported here: not every machine has Triton

    return TritonDepthwise.apply(triton_runtime.autocast(x), weight, gated)


# depthwise.c's Depthwise and Grad.
_Parameters = structure((c_void_p, "x weight y"), (c_int64, "batch height width channels"), (c_int32, "threads"))
_Gradients = structure((c_void_p, "x weight"))


class _GatedDepthwise(torch.autograd.Function):
    """In C; the halves are recomputed in the backward pass, not kept."""

    @staticmethod
    def forward(ctx, x, weight):
        batch, channels, height, width = x.shape
        taps = weight.flatten(1).t().contiguous()  # (9, C)
        y = torch.empty(batch, channels // 2, height, width, memory_format=torch.channels_last)
        call(compiled("depthwise.c").depthwise_forward, _parameters(x, taps, y))
        ctx.save_for_backward(x, taps)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y):
        x, taps = ctx.saved_tensors
        grad_x, threads = torch.empty_like(x), torch.get_num_threads()
        grad_taps = taps.new_zeros(threads, *taps.shape)
        gradients = _Gradients(address(grad_x), address(grad_taps))
        grad_y = grad_y.contiguous(memory_format=torch.channels_last)
        call(compiled("depthwise.c").depthwise_backward, _parameters(x, taps, grad_y), gradients)
        return grad_x, grad_taps.sum(0).t().reshape(-1, 1, 3, 3)


def _parameters(x, taps, y):
    return _Parameters(*map(address, (x, taps, y)), len(x), *x.shape[2:], x.shape[1], torch.get_num_threads())
