"""The divergence of Eq. 6, element by element: KL = p (log p - log q), p = sigmoid(current), q = sigmoid(other)."""

import torch
import torch.nn.functional as F

from . import at_least_fp32


def kl_divergence(current: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL of each element, in fp32 at least; only the two inputs are kept for the backward pass.

    Args:
        current, other: logits of one shape.
    """
    current, other = at_least_fp32(current), at_least_fp32(other)
    if torch.compiler.is_compiling():
        return kl_divergence_ref(current, other)
    return _KLDivergence.apply(current, other)


def kl_divergence_ref(current: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch."""
    return current.sigmoid() * (F.logsigmoid(current) - F.logsigmoid(other))


class _KLDivergence(torch.autograd.Function):
    """d KL / d current = (1 - p) (KL + p); d KL / d other = -p (1 - q)."""

    @staticmethod
    def forward(ctx, current, other):
        ctx.save_for_backward(current, other)
        return _kl(current, other, current.sigmoid())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        current, other = ctx.saved_tensors
        p = current.sigmoid()
        return grad * (-current).sigmoid() * (_kl(current, other, p) + p), -grad * p * (-other).sigmoid()


def _kl(current: torch.Tensor, other: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return _log_sigmoid(current).sub_(_log_sigmoid(other)).mul_(p)


def _log_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """min(x, 0) - log(1 + exp(-|x|)), within one rounding of a number in [1, 2] for any x.

    PyTorch's logsigmoid and softplus use log1p, which is ten times slower than log on a CPU.
    """
    return x.clamp(max=0).sub_(x.abs().neg_().exp_().add_(1).log_())
