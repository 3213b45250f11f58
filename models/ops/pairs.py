"""Element-wise operations on two tensors of one shape, forward and backward in one pass each.

In Triton (pairs_triton.py), in C compiled at first use (native/pairs.c), or by PyTorch's operations.
"""

from collections.abc import Callable
from ctypes import byref, c_int32, c_int64, c_void_p
from functools import partial

import torch

from . import from_pixels, to_pixels, triton_runtime
from .native.compiler import compiled
from .native.view import runs_in_c, structure


def apply(operation: str, ref: Callable, in_pytorch: Callable, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The operation's result; only a and b are kept for the backward pass.

    Args:
        operation: "kl" or "silu_gate", as the kernels call it.
        ref: of (a, b), for torch.compile, and for tensors of different shapes or dtypes.
        in_pytorch: compute(a, b) returns (y,); compute(a, b, grad_y) the gradients of a and b.
    """
    if torch.compiler.is_compiling() or a.shape != b.shape:
        return ref(a, b)
    if triton_runtime.runs(a, b):
        from . import pairs_triton  # imported here: not every machine has Triton

        return _Pair.apply(partial(pairs_triton.compute, operation), a, b)
    if runs_in_c("pairs.c", a, b):
        return _Pair.apply(partial(_in_c, operation), a, b)
    return _Pair.apply(in_pytorch, a, b) if a.dtype == b.dtype else ref(a, b)


class _Pair(torch.autograd.Function):
    @staticmethod
    def forward(ctx, compute, a, b):
        ctx.compute = compute
        ctx.save_for_backward(a, b)
        (y,) = compute(a, b)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return None, *ctx.compute(*ctx.saved_tensors, grad)


# pairs.c's Rows and Pair.
_Rows = structure((c_void_p, "data"), (c_int64, "step"))
_Parameters = structure((_Rows, "a b grad y grad_a grad_b"), (c_int64, "rows channels"), (c_int32, "threads"))


def _in_c(operation: str, a: torch.Tensor, b: torch.Tensor, grad: torch.Tensor | None = None) -> list[torch.Tensor]:
    """By a function of pairs.c; the results have a's shape and are channels last in memory."""
    given = {"a": a, "b": b} if grad is None else {"a": a, "b": b, "grad": grad}
    rows = {name: to_pixels(tensor) for name, tensor in given.items()}
    made = ["y"] if grad is None else ["grad_a", "grad_b"]
    outputs = [torch.empty_like(rows["a"], memory_format=torch.contiguous_format) for _ in made]
    rows |= dict(zip(made, outputs, strict=True))
    views = {name: _Rows(tensor.data_ptr(), tensor.stride(0)) for name, tensor in rows.items()}
    parameters = _Parameters(**views, threads=torch.get_num_threads())
    parameters.rows, parameters.channels = rows["a"].shape
    function = f"{operation}_{'forward' if grad is None else 'backward'}"
    getattr(compiled("pairs.c"), function)(byref(parameters))  # which allocates nothing
    return [from_pixels(output, a) for output in outputs]
