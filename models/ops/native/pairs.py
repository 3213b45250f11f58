"""Element-wise operations on two tensors of one shape in C, forward and backward in one pass each (pairs.c)."""

import ctypes

import torch

from .. import from_pixels, to_pixels
from .compiler import compiled_or_none


class NativePair(torch.autograd.Function):
    """``apply(name, a, b)``, with a name in pairs.c; only a and b are kept for the backward pass."""

    @staticmethod
    def forward(ctx, name, a, b):
        ctx.name = name
        ctx.save_for_backward(a, b)
        (y,) = _run(f"{name}_forward", {"a": a, "b": b}, ["y"])
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return None, *_run(f"{ctx.name}_backward", {"a": a, "b": b, "grad": grad}, ["grad_a", "grad_b"])


def runs(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether these two can be computed in C: float32 on a CPU, where there is a compiler."""
    return a.device.type == "cpu" and a.dtype == b.dtype == torch.float32 and compiled_or_none("pairs.c") is not None


class _Rows(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("step", ctypes.c_int64)]


class _Parameters(ctypes.Structure):
    """pairs.c's Pair."""

    _fields_ = [
        *((name, _Rows) for name in ("a", "b", "grad", "y", "grad_a", "grad_b")),
        *((name, ctypes.c_int64) for name in ("rows", "channels")),
        ("threads", ctypes.c_int32),
    ]


def _run(function: str, given: dict[str, torch.Tensor], made: list[str]) -> list[torch.Tensor]:
    """Call the C function, and return the tensors that it makes: of a's shape, channels last in memory."""
    a = given["a"]
    rows = {name: to_pixels(tensor) for name, tensor in given.items()}
    outputs = [torch.empty_like(rows["a"], memory_format=torch.contiguous_format) for _ in made]
    rows |= dict(zip(made, outputs, strict=True))
    views = {name: _Rows(tensor.data_ptr(), tensor.stride(0)) for name, tensor in rows.items()}
    parameters = _Parameters(**views, threads=torch.get_num_threads())
    parameters.rows, parameters.channels = rows["a"].shape
    getattr(compiled_or_none("pairs.c"), function)(ctypes.byref(parameters))
    return [from_pixels(output, a) for output in outputs]
