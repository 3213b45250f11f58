"""The selective scan in C, vectorised over channels, threaded over sequences; compiled at first use (native/scan.c).

float32. Channels-last tensors are not copied. For the backward pass one state in CHUNK steps is kept. The same call on
the same number of threads gives the same bits.
"""

import ctypes
import functools
from ctypes import c_int32, c_int64, c_void_p

import torch

from .. import channels_adjacent, empty_adjacent
from ..native.compiler import BuildError, call, compiled
from ..native.view import View, address, sizes, structure


def selective_scan_cpu(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """Same arguments and result as the reference's; states and sums in float32."""
    batch, dtype_in = u.shape[:-2], u.dtype
    u, delta, B, C = (_prepare(t) for t in (u, delta, B, C))
    z = None if z is None else _prepare(z)
    D, delta_bias = (A.new_zeros(len(A)) if t is None else t for t in (D, delta_bias))
    y = _Scan.apply(
        u, delta, A.float(), B, C, D.float(), z, delta_bias.float(), delta_softplus, torch.is_grad_enabled()
    )
    return (y.unflatten(0, batch) if len(batch) > 2 else y).to(dtype_in)


@functools.cache
def why_missing() -> str | None:
    """Why this cannot run here, in one line; None where it can."""
    try:
        _scan_library(16)
    except BuildError as error:
        return str(error)
    return None


# scan.c's Scan and Grad.
_Parameters = structure(
    (View, "u delta z B C y"),
    (c_void_p, "A D bias starts"),
    (c_int64, "batch0 batch1 channels length"),
    (c_int32, "softplus threads"),
)
_Gradients = structure((View, "y u delta z B C"), (c_void_p, "A D bias"))


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, z, bias, softplus, grad_enabled):
        A, D, bias = (t.contiguous() for t in (A, D, bias))
        library, y = _scan_library(A.shape[1]), empty_adjacent(u)
        starts = None
        if grad_enabled and any(ctx.needs_input_grad):
            batch0, batch1, channels, length = sizes(u)
            lanes, chunk = library.scan_lanes(), library.scan_chunk()
            blocks = -(-channels // lanes)
            starts = u.new_empty(batch0, batch1, -(-length // chunk), blocks, A.shape[1], lanes)
            ctx.save_for_backward(u, delta, A, B, C, D, z, bias, starts)
            ctx.softplus = softplus
        call(library.scan_forward, _parameters(u, delta, A, B, C, D, z, bias, softplus, y, starts))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y):
        u, delta, A, B, C, D, z, bias, starts = ctx.saved_tensors
        grad_y, threads = channels_adjacent(grad_y), torch.get_num_threads()
        grad_u, grad_delta, grad_z, grad_B, grad_C = (
            None if t is None else empty_adjacent(t) for t in (u, delta, z, B, C)
        )
        blocks, states, lanes = starts.shape[-3:]
        grad_A = u.new_zeros(threads, blocks, states, lanes)
        grad_D, grad_bias = u.new_zeros(2, threads, blocks, lanes)
        views = map(View.of, (grad_y, grad_u, grad_delta, grad_z, grad_B, grad_C))
        gradients = _Gradients(*views, *map(address, (grad_A, grad_D, grad_bias)))
        parameters = _parameters(u, delta, A, B, C, D, z, bias, ctx.softplus, None, starts)
        call(_scan_library(states).scan_backward, parameters, gradients)
        grad_A = grad_A.sum(0).transpose(1, 2).reshape(-1, states)[: len(A)]
        grad_D, grad_bias = (t.sum(0).flatten()[: len(A)] for t in (grad_D, grad_bias))
        return grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias, None, None


def _parameters(u, delta, A, B, C, D, z, bias, softplus, y, starts):
    views, pointers = map(View.of, (u, delta, z, B, C, y)), map(address, (A, D, bias, starts))
    return _Parameters(*views, *pointers, *sizes(u), softplus, torch.get_num_threads())


def _prepare(tensor: torch.Tensor) -> torch.Tensor:
    """float32, at most two batch dimensions, channels adjacent."""
    tensor = tensor.float()
    return channels_adjacent(tensor.flatten(0, -3) if tensor.dim() > 4 else tensor)


@functools.cache
def _scan_library(states: int) -> ctypes.CDLL:
    """Compiled for this number of states, so that they stay in registers."""
    scan = compiled("scan.c", f"STATES={states}")
    scan.scan_lanes.restype = scan.scan_chunk.restype = ctypes.c_int64
    return scan
