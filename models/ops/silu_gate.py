"""The gate of Eq. 5, SiLU(y) * x: one pass in Triton or in C (native/pairs.c), or PyTorch's own operations."""

from functools import partial

import torch
import torch.nn.functional as F

from . import triton_runtime
from .native import pairs
from .pair import Pair


def silu_gate(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """SiLU(y) * x, for x and y of one shape and dtype; SiLU(y) is recomputed in the backward pass, not kept."""
    if torch.compiler.is_compiling():
        return silu_gate_ref(x, y)
    if triton_runtime.runs(x, y):
        from . import pairs_triton  # imported here: not every machine has Triton

        return Pair.apply(partial(pairs_triton.compute, "silu_gate"), x, y)
    return Pair.apply(partial(pairs.compute, "silu_gate") if pairs.runs(x, y) else _in_pytorch, x, y)


def silu_gate_ref(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch."""
    return F.silu(y) * x


def _in_pytorch(x: torch.Tensor, y: torch.Tensor, grad: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    if grad is None:
        return (F.silu(y).mul_(x),)
    return F.silu(y).mul_(grad), torch.ops.aten.silu_backward(grad * x, y)
