"""Tensors as the C kernels take them: by address and strides, in C's structures."""

import ctypes

import torch

from .compiler import compiled_or_none


def runs_in_c(source: str, *tensors: torch.Tensor) -> bool:
    """Whether a C file can compute these tensors: float32 on a CPU with a compiler, outside torch.compile."""
    fit = all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
    return fit and not torch.compiler.is_compiling() and compiled_or_none(source) is not None


def structure(*groups: tuple[type, str]) -> type[ctypes.Structure]:
    """A C structure with these fields in this order, given as (type, names)."""
    fields = [(name, kind) for kind, names in groups for name in names.split()]
    return type("Structure", (ctypes.Structure,), {"_fields_": fields})


class View(ctypes.Structure):
    """kernels.h's View of a float32 tensor (*batch, channels, steps): at most two batch dimensions, channel stride 1.

    Holds an address, not the tensor: the caller keeps it alive.
    """

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch0", "batch1", "step"))]

    @classmethod
    def of(cls, tensor: torch.Tensor | None) -> "View":
        if tensor is None:
            return cls()
        batch0, batch1, _, step = (0, 0, 0, 0)[tensor.dim() :] + tensor.stride()
        return cls(tensor.data_ptr(), batch0, batch1, step)


def sizes(tensor: torch.Tensor) -> tuple[int, int, int, int]:
    """(batch0, batch1, channels, steps) of (*batch, channels, steps)."""
    return (1, 1, 1, 1)[tensor.dim() :] + tuple(tensor.shape)


def address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
