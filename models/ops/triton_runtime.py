"""Whether Triton's kernels can run here, and what they have in common.

This module imports without Triton; the kernel modules (``…_triton``) do not, so call why_missing() first.
"""

import functools
import importlib
import os

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COMPILE = {"enable_fp_fusion": True}  # multiply-adds, whatever Triton's default


def why_missing() -> str | None:
    """Why Triton cannot run here, in one line; None where it can: on CUDA, or anywhere through its interpreter."""
    if os.environ.get("XYSCANNET_TRITON") == "0":
        return "switched off by XYSCANNET_TRITON=0"
    if interpreted():
        return _import_error()
    if not torch.cuda.is_available():
        return "no CUDA device"
    return _import_error() or _launch_error()


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on any device and thousands of times slower: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs(*tensors: torch.Tensor) -> bool:
    """Whether Triton's kernels take these tensors."""
    if torch.compiler.is_compiling():
        return False
    fit = all((tensor.is_cuda or interpreted()) and tensor.dtype in DTYPES for tensor in tensors)
    return fit and why_missing() is None


def autocast(tensor: torch.Tensor) -> torch.Tensor:
    """In the dtype of autocast where it is on, as PyTorch casts the arguments of a convolution."""
    return tensor.to(autocast_dtype(tensor, tensor.dtype))


def autocast_dtype(tensor: torch.Tensor, otherwise: torch.dtype) -> torch.dtype:
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else otherwise


@functools.cache
def _import_error() -> str | None:
    try:
        importlib.import_module("triton")
    except Exception as error:  # a Triton that does not fit torch or the system fails in many ways
        return _in_one_line(error)
    return None


@functools.cache
def _launch_error() -> str | None:
    """Launches a small kernel: Triton also needs a C compiler, and a GPU that it knows."""
    try:
        from .pairs_triton import compute

        one = torch.ones(1, 1, device="cuda")
        compute("silu_gate", one, one)[0].item()
    except Exception as error:
        return _in_one_line(error)
    return None


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
