"""The gate of Eq. 5, SiLU(y) * x: one pass in Triton or in C (native/pairs.c), or PyTorch's own operations."""

import torch
import torch.nn.functional as F

from . import triton_runtime
from .native import pairs


def silu_gate(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """SiLU(y) * x, for x and y of one shape and dtype; SiLU(y) is recomputed in the backward pass, not kept."""
    if torch.compiler.is_compiling():
        return silu_gate_ref(x, y)
    if triton_runtime.runs(x, y):
        from .pairs_triton import TritonPair  # imported here: not every machine has Triton

        return TritonPair.apply("silu_gate", x, y)
    if pairs.runs(x, y):
        return pairs.NativePair.apply("silu_gate", x, y)
    return _SiluGate.apply(x, y)


def silu_gate_ref(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch."""
    return F.silu(y) * x


class _SiluGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return F.silu(y).mul_(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        return F.silu(y).mul_(grad), torch.ops.aten.silu_backward(grad * x, y)
