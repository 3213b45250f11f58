"""Tensors as the C kernels see them: where they lie, by address and strides."""

import ctypes

import torch


class View(ctypes.Structure):
    """kernels.h's View of a float32 tensor (*batch, channels, steps): at most two batch dimensions, channels adjacent.

    Holds an address, not the tensor: the caller keeps it alive.
    """

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("batch0", ctypes.c_int64),
        ("batch1", ctypes.c_int64),
        ("step", ctypes.c_int64),
    ]

    @classmethod
    def of(cls, tensor: torch.Tensor | None) -> "View":
        if tensor is None:
            return cls()
        batch0, batch1, _, step = (0, 0, 0, 0)[tensor.dim() :] + tensor.stride()
        return cls(tensor.data_ptr(), batch0, batch1, step)


def lying_well(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, copied only where View cannot describe them as they lie."""
    if tensor.shape[-2] == 1 or tensor.stride(-2) == 1:
        return tensor
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def sizes(tensor: torch.Tensor) -> tuple[int, int, int, int]:
    """(batch0, batch1, channels, steps) of (*batch, channels, steps)."""
    return (1, 1, 1, 1)[tensor.dim() :] + tuple(tensor.shape)


def address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
