"""The divergence of Eq. 6, element by element: KL = p (log p - log q), p = sigmoid(current), q = sigmoid(other)."""

import torch
import torch.nn.functional as F

from . import at_least_fp32, triton_runtime
from .pairs import apply


def kl_divergence(current: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL of each element, in fp32 at least; only the two inputs are kept for the backward pass.

    Args:
        current, other: logits of one shape.
    """
    if not triton_runtime.runs(current, other):  # which reads half precision itself
        current, other = at_least_fp32(current), at_least_fp32(other)
    return apply("kl", kl_divergence_ref, _in_pytorch, current, other)


def kl_divergence_ref(current: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch."""
    current, other = at_least_fp32(current), at_least_fp32(other)
    return current.sigmoid() * (F.logsigmoid(current) - F.logsigmoid(other))


def _in_pytorch(
    current: torch.Tensor, other: torch.Tensor, grad: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """d KL / d current = (1 - p) (KL + p); d KL / d other = -p (1 - q)."""
    kl = kl_divergence_ref(current, other)
    if grad is None:
        return (kl,)
    p = current.sigmoid()
    return grad * (-current).sigmoid() * (kl + p), -grad * p * (-other).sigmoid()
