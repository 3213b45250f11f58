"""The network's two kinds of convolution, 1x1 and depth-wise 3x3, in few passes over channels-last maps."""
import ctypes
import functools

import torch
import torch.nn.functional as F
from torch import nn

from .native.compiler import BuildError, compiled
from .native.view import address


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution without bias: a matrix product over the pixels. (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__(channels_in, channels_out, 1, bias=False)

    @property
    def matrix(self) -> torch.Tensor:
        """(C_out, C_in)."""
        return self.weight.flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # With a single thread PyTorch unfolds x first; a plain matrix product does without.
        if x.device.type == "cpu" and not torch.compiler.is_compiling() and torch.get_num_threads() == 1:
            return F.linear(x.permute(0, 2, 3, 1), self.matrix).permute(0, 3, 1, 2)
        return super().forward(x)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """residual + the convolution of x, in one pass where precision allows; both channels-last."""
        if torch.is_autocast_enabled(x.device.type):      # the sum stays in the residual's own precision
            return residual + self(x)
        pixels, rows = (t.permute(0, 2, 3, 1).flatten(0, 2) for t in (residual, x))
        summed = torch.addmm(pixels, rows, self.matrix.t())
        return summed.unflatten(0, (-1, *residual.shape[2:])).permute(0, 3, 1, 2)


class DepthwiseConv(nn.Conv2d):
    """(B, C, H, W) -> the same shape; each channel its own 3x3 filter, zeros around, no bias."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1, groups=channels, bias=False)

    def gated(self, x: torch.Tensor) -> torch.Tensor:
        """SiLU(a) * b, where (a, b) are the halves of the result: (B, C, H, W) -> (B, C / 2, H, W)."""
        if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling() and _available():
            return _GatedDepthwise.apply(x.contiguous(memory_format=torch.channels_last), self.weight)
        a, b = self(x).chunk(2, dim=1)
        return F.silu(a) * b


class _Parameters(ctypes.Structure):
    """depthwise.c's Depthwise."""
    _fields_ = [*((name, ctypes.c_void_p) for name in ("x", "weight", "y")),
                *((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels")),
                ("threads", ctypes.c_int32)]


class _Gradients(ctypes.Structure):
    """depthwise.c's Grad."""
    _fields_ = [("x", ctypes.c_void_p), ("weight", ctypes.c_void_p)]


class _GatedDepthwise(torch.autograd.Function):
    """DepthwiseConv.gated in C (native/depthwise.c): the halves are computed again for the backward pass, not kept."""

    @staticmethod
    def forward(ctx, x, weight):
        batch, channels, height, width = x.shape
        taps = weight.flatten(1).t().contiguous()                                  # (9, C)
        y = torch.empty(batch, channels // 2, height, width, memory_format=torch.channels_last)
        _check(_depthwise_library().depthwise_forward(_parameters(x, taps, y)))
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
        _check(_depthwise_library().depthwise_backward(_parameters(x, taps, grad_y), ctypes.byref(gradients)))
        return grad_x, grad_taps.sum(0).t().reshape(-1, 1, 3, 3)


def _parameters(x, taps, y):
    return ctypes.byref(_Parameters(address(x), address(taps), address(y), len(x), *x.shape[2:], x.shape[1],
                                    torch.get_num_threads()))


@functools.cache
def _available() -> bool:
    try:
        _depthwise_library()
    except BuildError:      # the choice of the scan's backend says so in the log
        return False
    return True


@functools.cache
def _depthwise_library() -> ctypes.CDLL:
    return compiled("depthwise.c")


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("not enough memory for a depth-wise convolution")
