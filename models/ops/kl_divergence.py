"""Eq. 6's divergence, KL = p (log p - log q) with p = sigmoid(current) and q = sigmoid(other), element by element."""

import torch
import torch.nn.functional as F


def kl_divergence(current: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL of each element, in fp32 at least; keeps only its two inputs for the backward pass.

    Args:
        current, other: logits of one shape.
    """
    current, other = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (current, other))
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return kl_divergence_ref(current, other)
    return _KLDivergence.apply(current, other)


def kl_divergence_ref(current: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch."""
    # log sigmoid(x) written as -softplus(-x), which is quicker than logsigmoid and as exact.
    return current.sigmoid() * (F.softplus(-other) - F.softplus(-current))


class _KLDivergence(torch.autograd.Function):
    """d KL / d current = p (1 - p) (log p - log q + 1); d KL / d other = -p (1 - q)."""

    @staticmethod
    def forward(ctx, current, other):
        ctx.save_for_backward(current, other)
        return kl_divergence_ref(current, other)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        current, other = ctx.saved_tensors
        p = current.sigmoid()
        log_ratio = F.softplus(-other) - F.softplus(-current)
        return grad * p * (-current).sigmoid() * (log_ratio + 1), -grad * p * (-other).sigmoid()
