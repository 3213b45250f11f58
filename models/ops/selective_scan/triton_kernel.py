"""The selective scan on a GPU through Triton: compiled at first use, no compiler to install.

Channels-last tensors are not copied; states are float32, inputs float32, bfloat16 or float16. For the backward pass one
state in ``tuning.LaunchParameters.chunk`` steps is kept. The same call on the same device gives the same bits.
The kernels are in triton_scan.py, imported when first used: not every machine has Triton.
"""

import functools

import torch
from torch.autograd.function import once_differentiable

from .. import channels_adjacent, empty_adjacent
from ..triton_runtime import COMPILE, DTYPES
from ..tuning import launch_parameters

MAX_STATES = 16  # triton_scan.STATES


def selective_scan_triton(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """Same arguments and result as the reference's; result and gradients keep their tensors' order of strides.

    Raises:
        ValueError: more than 16 states, or a dtype other than float32, bfloat16 and float16.
    """
    if A.shape[1] > MAX_STATES:
        raise ValueError(f"scan backend triton takes up to {MAX_STATES} states, got A of {tuple(A.shape)}; use torch")
    for name, tensor in {"u": u, "delta": delta, "B": B, "C": C, "z": z}.items():
        if tensor is not None and tensor.dtype not in DTYPES:
            raise ValueError(f"scan backend triton runs in float32, bfloat16 or float16, got {name} in {tensor.dtype}")
    rows = [None if t is None else as_rows(t) for t in (u, delta, B, C, z)]
    y = _Scan.apply(*rows[:2], A, *rows[2:4], D, rows[4], delta_bias, delta_softplus, torch.is_grad_enabled())
    return y.view(u.shape) if u.dim() <= 4 else y.reshape(u.shape)


def as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """(*batch, channels, length) -> (outer, inner, channels, length), channel stride 1; a copy only where needed."""
    missing = 4 - tensor.dim()
    tensor = tensor[(None,) * missing] if missing >= 0 else tensor.flatten(0, -4)
    return channels_adjacent(tensor)


def row_strides(*tensors: torch.Tensor) -> list[int]:
    """Strides over the two batch dimensions and time, one tensor after another."""
    return [tensor.stride(dim) for tensor in tensors for dim in (0, 1, 3)]


def forward_lanes(pairs: int, most: int) -> int:
    """(sequence, channel) pairs per program, one a thread; fewer for small inputs, so that all processors get some."""
    return most if pairs >= 2**15 else 32


def backward_workers(sequences: int, blocks: int, programs: int) -> int:
    """Programs that share a block of channels' sequences evenly; at most ``programs`` over all blocks."""
    rounds = max(-(-sequences * blocks // programs), 1)  # an empty batch has none
    return -(-sequences // rounds)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, z, bias, softplus, grad_enabled):
        from . import triton_scan

        outer, inner, channels, length = u.shape
        pairs = outer * inner * channels
        keep = grad_enabled and any(ctx.needs_input_grad)
        tuned = launch_parameters(u.device)
        kept = u.new_empty(-(-length // tuned.chunk) if keep else 0, A.shape[1], pairs, dtype=torch.float32)
        y, lanes = empty_adjacent(u), forward_lanes(pairs, tuned.forward_lanes)
        A32, D32, bias32 = (_float32(t) for t in (A, D, bias))
        gate = u if z is None else z  # where there is none, its pointer is not followed
        with torch.cuda.device_of(u):
            triton_scan.forward[(-(-pairs // lanes),)](
                u, delta, A32, B, C, D32, gate, bias32, y, kept, pairs, channels, inner, length,
                *row_strides(u, delta, B, C, gate, y), LANES=lanes, CHUNK=tuned.chunk, KEEP=keep, num_warps=lanes // 32,
                maxnreg=tuned.forward_registers, **_variant(A, D, z, bias, softplus), **COMPILE
            )  # fmt: skip
        ctx.softplus, ctx.tuned = softplus, tuned
        ctx.save_for_backward(u, delta, A, B, C, D, z, bias, kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        from . import triton_scan

        u, delta, A, B, C, D, z, bias, kept = ctx.saved_tensors
        outer, inner, channels, length = u.shape
        warp, states, twice = triton_scan.WARP.value, A.shape[1], 2 * MAX_STATES
        blocks = -(-channels // warp)
        workers = backward_workers(outer * inner, blocks, ctx.tuned.backward_programs)
        new = functools.partial(u.new_empty, dtype=torch.float32)
        spans = new(blocks * workers, ctx.tuned.chunk // triton_scan.SPAN.value, MAX_STATES, warp)
        dBC, dA = new(blocks, outer, inner, length, twice), new(workers, channels, states)
        dD, dbias = new(workers, channels), new(workers, channels)
        du, ddelta, dz = (None if t is None else empty_adjacent(t) for t in (u, delta, z))
        dy, gate, dgate = as_rows(dy), u if z is None else z, du if z is None else dz
        A32, D32, bias32 = (_float32(t) for t in (A, D, bias))
        with torch.cuda.device_of(u):
            triton_scan.backward[(blocks * workers,)](
                u, delta, A32, B, C, D32, gate, bias32, dy, kept, spans, du, ddelta, dgate, dBC, dA, dD, dbias,
                outer * inner, channels, inner, length, *row_strides(u, delta, B, C, gate, dy, du, ddelta, dgate),
                CHUNK=ctx.tuned.chunk, num_warps=1, **_variant(A, D, z, bias, ctx.softplus), **COMPILE
            )  # fmt: skip
        dB, dC = dBC.sum(0).transpose(2, 3).split(MAX_STATES, dim=2)
        dB, dC = dB[:, :, :states].to(B.dtype), dC[:, :, :states].to(C.dtype)
        dA, dD, dbias = (None if t is None else d_t.sum(0).to(t.dtype) for t, d_t in ((A, dA), (D, dD), (bias, dbias)))
        return du, ddelta, dA, dB, dC, dD, dz, dbias, None, None


def _float32(vector: torch.Tensor | None) -> torch.Tensor | None:
    return None if vector is None else vector.float().contiguous()


def _variant(A, D, z, bias, softplus: bool) -> dict:
    """The constants that a kernel is compiled for."""
    return {
        "N": A.shape[1],
        "HAS_D": D is not None,
        "HAS_Z": z is not None,
        "HAS_BIAS": bias is not None,
        "SOFTPLUS": bool(softplus),
    }
