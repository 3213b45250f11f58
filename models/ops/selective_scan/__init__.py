"""The selective scan of S6 with a choice of backends.

reference   plain PyTorch, step by step: easy to read; the others are tested against it
torch       vectorised PyTorch, any device, memory linear in the length
cpu         C, compiled at first use where there is a compiler; float32 inside
triton      Triton, which comes with PyTorch for CUDA, compiled at first use
mamba_ssm   mamba-ssm's CUDA kernel, where it is installed
auto        the first native backend that can run on the input's device and dtype
"""

import functools
import logging
from collections.abc import Callable

import torch
from torch import library

from .. import triton_runtime
from . import cpu, mamba_kernel
from .chunked import selective_scan_chunked
from .cpu import selective_scan_cpu
from .mamba_kernel import selective_scan_mamba
from .reference import selective_scan_ref
from .triton_kernel import selective_scan_triton

logger = logging.getLogger(__name__)

BACKENDS = {
    "reference": selective_scan_ref,
    "torch": selective_scan_chunked,
    "cpu": selective_scan_cpu,
    "triton": selective_scan_triton,
    "mamba_ssm": selective_scan_mamba,
}
# Each kernel's device, why it is missing there, and what to do then; "auto" takes the first that can run.
NATIVE: dict[str, tuple[str, Callable[[], str | None], str]] = {
    "cpu": ("cpu", cpu.why_missing, "install a C compiler, or use torch"),
    "mamba_ssm": ("cuda", mamba_kernel.why_missing, f"install it with {mamba_kernel.INSTALL}"),
    "triton": ("cuda", triton_runtime.why_missing, "use torch"),
}


class BackendError(ValueError):
    """The scan backend is unknown, or cannot run on this device or in this dtype."""


def selective_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    backend: str = "auto",
) -> torch.Tensor:
    """S6's recurrence (paper, Section 3.1; Gu & Dao 2023, Algorithm 2); the signature is mamba-ssm's.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t, h_0 = 0;  y_t = C_t h_t + D u_t;  the result is y * SiLU(z).

    Args:
        u: input (*batch, channels, length); delta: step sizes, same shape, before bias and softplus.
        A: real state matrix (channels, states); B, C: input and output matrices (*batch, states, length).
        D: skip connection (channels,); z: gate, same shape as u; delta_bias: (channels,).
        delta_softplus: whether softplus is applied to delta + delta_bias.
        backend: a name in ``BACKENDS``, or "auto".
    Returns:
        (*batch, channels, length) in u's dtype; the state is kept in float32 (float64 for float64).
    Raises:
        BackendError: the backend is unknown or cannot run here.
        ValueError: the shapes do not fit together.
    """
    _check_shapes(u, delta, A, B, C, D, z, delta_bias)
    if torch.compiler.is_compiling():
        return _opaque_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend)
    name = resolve_backend(backend, u.device, u.dtype)
    return BACKENDS[name](u, delta, A, B, C, D, z, delta_bias, delta_softplus)


@library.custom_op("xyscannet::selective_scan", mutates_args=())
def _opaque_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    z: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    delta_softplus: bool,
    backend: str,
) -> torch.Tensor:
    """The scan as one opaque operation for torch.compile, inference only."""
    y = selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend)
    return y if y.stride() == torch.empty_like(u, device="meta").stride() else torch.empty_like(u).copy_(y)


@_opaque_scan.register_fake
def _(u, *_):
    return torch.empty_like(u)


def resolve_backend(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """The name of the backend to use on ``device``; BackendError where one asked for by name cannot run."""
    if backend == "auto":
        name, why = choose(device.type, dtype)
        _log_once(f"selective scan on {device.type} ({dtype}): backend {name}, {why}")
        return name
    if backend not in BACKENDS:
        raise BackendError(f"scan backend {backend!r} is unknown; choose one of auto, {', '.join(BACKENDS)}")
    reason = why_not(backend, device.type, dtype)
    if reason:
        raise BackendError(f"scan backend {backend} cannot run in {dtype} on {device}: {reason}")
    return backend


def why_not(backend: str, device_type: str, dtype: torch.dtype = torch.float32) -> str | None:
    """Why ``backend`` cannot run there and what to do instead, in one line; None where it can."""
    if backend not in NATIVE:
        return None
    runs_on, why_missing, remedy = NATIVE[backend]
    if device_type != runs_on and not (backend == "triton" and triton_runtime.interpreted()):
        return f"it runs on {runs_on}; use torch"
    if dtype == torch.float64:
        return "it has no float64; use torch"
    missing = why_missing()
    return f"{missing}; {remedy}" if missing else None


def choose(device_type: str, dtype: torch.dtype = torch.float32) -> tuple[str, str]:
    """The backend for "auto", and why."""
    reasons = []
    for name, (runs_on, _, _) in NATIVE.items():
        if runs_on == device_type:
            reason = why_not(name, device_type, dtype)
            if reason is None:
                return name, "; ".join(["a kernel made for it", *reasons])
            reasons.append(f"{name} cannot run: {reason}")
    return "torch", "; ".join(reasons) or f"the fastest on {device_type}"


@functools.cache
def _log_once(message: str) -> None:
    logger.info(message)


def _check_shapes(u, delta, A, B, C, D, z, delta_bias) -> None:
    if u.dim() < 3 or delta.shape != u.shape:
        raise ValueError(
            f"u and delta must both be (*batch, channels, length), got {tuple(u.shape)}, {tuple(delta.shape)}"
        )
    if A.shape[0] != u.shape[-2] or A.is_complex():
        raise ValueError(
            f"A must be real, (channels, states) with {u.shape[-2]} channels, got {tuple(A.shape)}, {A.dtype}"
        )
    expected = (*u.shape[:-2], A.shape[1], u.shape[-1])
    if B.shape != expected or C.shape != expected:
        raise ValueError(
            f"B and C must be (*batch, states, length) = {expected}, got {tuple(B.shape)}, {tuple(C.shape)}"
        )
    for name, tensor, shape in (("D", D, A.shape[:1]), ("z", z, u.shape), ("delta_bias", delta_bias, A.shape[:1])):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must be {tuple(shape)}, got {tuple(tensor.shape)}")
