"""One function, several engines: the selective scan of S6 with a choice of backend.

    reference   plain PyTorch, step by step: to read, and to bind the others to
    torch       vectorised PyTorch, any device, memory linear in the length
    mamba_ssm   mamba-ssm's CUDA kernel, where it is installed
    auto        the fastest of those that can run on the input's device and dtype
"""
import functools
import logging

import torch

from .chunked import selective_scan_chunked
from .mamba_kernel import INSTALL, selective_scan_mamba, why_missing
from .reference import selective_scan_reference

logger = logging.getLogger(__name__)

BACKENDS = {"reference": selective_scan_reference, "torch": selective_scan_chunked, "mamba_ssm": selective_scan_mamba}


def selective_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, backend="auto"):
    """S6's recurrence (paper, Section 3.1; Gu & Dao 2023, Algorithm 2); the signature is mamba-ssm's.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t, h_0 = 0;  y_t = C_t h_t + D u_t;  the result is y * SiLU(z).

    Args:
        u: input (batch, channels, length); delta: step sizes, same shape, before bias and softplus.
        A: real state matrix (channels, states); B, C: input and output matrices (batch, states, length).
        D: skip connection (channels,); z: gate, same shape as u; delta_bias: (channels,).
        delta_softplus: whether softplus is applied to delta + delta_bias.
        backend: a name in ``BACKENDS``, or "auto".
    Returns:
        (batch, channels, length) in u's dtype; the state is kept in float32 (float64 for float64).
    Raises:
        ValueError: a backend unknown or unable to run here, or shapes that do not fit together.
    """
    _check_shapes(u, delta, A, B, C)
    name = resolve_backend(backend, u.device, u.dtype)
    return BACKENDS[name](u, delta, A, B, C, D, z, delta_bias, delta_softplus)


def resolve_backend(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """The backend that ``backend`` means on ``device``; one asked for by name that cannot run raises ValueError."""
    if backend == "auto":
        name, why = choose(device.type, dtype)
        _say_once(f"selective scan on {device.type} ({dtype}): backend {name}, {why}")
        return name
    if backend not in BACKENDS:
        raise ValueError(f"scan backend {backend!r} is unknown; choose one of auto, {', '.join(BACKENDS)}")
    if backend == "mamba_ssm":
        if device.type != "cuda" or dtype == torch.float64:
            raise ValueError(f"scan backend mamba_ssm runs on CUDA in fp32, fp16 or bf16, not in {dtype} on {device}")
        if why_missing():
            raise ValueError(f"scan backend mamba_ssm cannot run ({why_missing()}); install it with {INSTALL}")
    return backend


def choose(device_type: str, dtype: torch.dtype = torch.float32) -> tuple[str, str]:
    """(the backend that "auto" means, why)."""
    if device_type != "cuda":
        return "torch", f"the fastest on {device_type}"
    if dtype == torch.float64:
        return "torch", "CUDA kernels have no float64"
    if why_missing():
        return "torch", f"mamba_ssm cannot run: {why_missing()}"
    return "mamba_ssm", "its CUDA kernel is installed"


@functools.cache
def _say_once(message: str) -> None:
    logger.info(message)


def _check_shapes(u, delta, A, B, C) -> None:
    if u.dim() != 3 or delta.shape != u.shape:
        raise ValueError("u and delta must both be (batch, channels, length), "
                         f"got {tuple(u.shape)}, {tuple(delta.shape)}")
    if A.shape[0] != u.shape[1] or A.is_complex():
        raise ValueError(f"A must be real, (channels, states) with {u.shape[1]} channels, "
                         f"got {tuple(A.shape)}, {A.dtype}")
    expected = (u.shape[0], A.shape[1], u.shape[2])
    if B.shape != expected or C.shape != expected:
        raise ValueError(f"B and C must be (batch, states, length) = {expected}, "
                         f"got {tuple(B.shape)}, {tuple(C.shape)}")
