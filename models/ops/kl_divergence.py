"""The divergence of Eq. 6, element by element: KL = p (log p - log q), p = sigmoid(current), q = sigmoid(other).

One pass in Triton or in C, compiled at first use (native/pairs.c), or PyTorch's own operations.
"""

import torch
import torch.nn.functional as F

from . import at_least_fp32, triton_runtime
from .native import pairs


def kl_divergence(current: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL of each element, in fp32 at least; only the two inputs are kept for the backward pass.

    Args:
        current, other: logits of one shape.
    """
    if triton_runtime.runs(current, other):
        from .pairs_triton import TritonPair  # imported here: not every machine has Triton

        return TritonPair.apply("kl", current, other)
    current, other = at_least_fp32(current), at_least_fp32(other)
    if torch.compiler.is_compiling():
        return kl_divergence_ref(current, other)
    if pairs.runs(current, other):
        return pairs.NativePair.apply("kl", current, other)
    return _KLDivergence.apply(current, other)


def kl_divergence_ref(current: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch."""
    return current.sigmoid() * (F.logsigmoid(current) - F.logsigmoid(other))


class _KLDivergence(torch.autograd.Function):
    """d KL / d current = (1 - p) (KL + p); d KL / d other = -p (1 - q)."""

    @staticmethod
    def forward(ctx, current, other):
        ctx.save_for_backward(current, other)
        return kl_divergence_ref(current, other)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        current, other = ctx.saved_tensors
        p, kl = current.sigmoid(), kl_divergence_ref(current, other)
        return grad * (-current).sigmoid() * (kl + p), -grad * p * (-other).sigmoid()
