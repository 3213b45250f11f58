"""Element-wise operations on two tensors of one shape in C, forward and backward in one pass each (pairs.c)."""

from ctypes import byref, c_int32, c_int64, c_void_p

import torch

from .. import from_pixels, to_pixels
from .compiler import compiled, compiled_or_none
from .view import structure


def runs(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether these two can be computed in C: float32 on a CPU, where there is a compiler."""
    return a.device.type == "cpu" and a.dtype == b.dtype == torch.float32 and compiled_or_none("pairs.c") is not None


# pairs.c's Rows and Pair.
_Rows = structure((c_void_p, "data"), (c_int64, "step"))
_Parameters = structure((_Rows, "a b grad y grad_a grad_b"), (c_int64, "rows channels"), (c_int32, "threads"))


def compute(operation: str, a: torch.Tensor, b: torch.Tensor, grad: torch.Tensor | None = None) -> list[torch.Tensor]:
    """What `Pair` asks for, by an operation of pairs.c: of a's shape, channels last in memory."""
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
