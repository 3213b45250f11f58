"""Layer normalisation over the channels of each pixel: one pass in Triton on a GPU, or PyTorch's own operation."""

import torch
import torch.nn.functional as F
from einops import rearrange

from . import triton_runtime


def channel_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """(B, C, H, W) -> the same shape, channels last in memory; statistics and sums in the weight's precision or fp32.

    In Triton the result has autocast's dtype where that is on, which the convolution behind it would round it to.

    Args:
        weight, bias: (C,).
    """
    if not triton_runtime.runs(x):
        return channel_norm_ref(x, weight, bias, eps)
    from .channel_norm_triton import TritonChannelNorm  # imported here: not every machine has Triton

    return TritonChannelNorm.apply(x, weight, bias, eps, triton_runtime.autocast_dtype(x, weight.dtype))


def channel_norm_ref(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """The same in plain PyTorch, in the weight's precision."""
    with torch.autocast(x.device.type, enabled=False):
        x = rearrange(x, "b c h w -> b h w c").to(weight.dtype)
        return rearrange(F.layer_norm(x, weight.shape, weight, bias, eps), "b h w c -> b c h w")
