"""mamba-ssm's CUDA kernels (extra ``cuda``) with our signature; imported when first used."""

import functools
import importlib

import torch

INSTALL = "pip install -e .[cuda] (needs nvcc; set MAMBA_KEEP_CUDA_BUILD=TRUE and add --no-build-isolation)"


@functools.cache
def why_missing() -> str | None:
    """Why mamba-ssm's kernels cannot run here, in one line; None where they can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        _interface()
    except Exception as error:  # a wheel built for another torch or CUDA fails in many ways: ImportError, OSError…
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def selective_scan_mamba(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """Same arguments and result as the reference's; CUDA tensors in fp32, fp16 or bf16, A, D and delta_bias in fp32."""
    flat = [None if t is None else t.flatten(0, -3).contiguous() for t in (u, delta, B, C, z)]
    y = _interface().selective_scan_fn(*flat[:2], A, *flat[2:4], D, flat[4], delta_bias, delta_softplus)
    return y.reshape(u.shape)


@functools.cache
def _interface():
    return importlib.import_module("mamba_ssm.ops.selective_scan_interface")
