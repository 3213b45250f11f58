"""The gate of Eq. 5, SiLU(y) * x."""

import torch
import torch.nn.functional as F

from .pairs import apply


def silu_gate(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """SiLU(y) * x; SiLU(y) is recomputed in the backward pass, not kept."""
    return apply("silu_gate", silu_gate_ref, _in_pytorch, x, y)


def silu_gate_ref(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch."""
    return F.silu(y) * x


def _in_pytorch(x: torch.Tensor, y: torch.Tensor, grad: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    if grad is None:
        return (F.silu(y).mul_(x),)
    return F.silu(y).mul_(grad), torch.ops.aten.silu_backward(grad * x, y)
