"""mamba-ssm's CUDA kernels behind our signature, imported only when they are asked for (extra ``cuda``)."""
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
    except Exception as error:      # a wheel built for another torch or CUDA fails in many ways: ImportError, OSError…
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def selective_scan_mamba(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """Same arguments and result as the reference's; CUDA tensors in fp32, fp16 or bf16, A, D and delta_bias in fp32."""
    u, delta, B, C = (t.contiguous() for t in (u, delta, B, C))
    z = None if z is None else z.contiguous()
    return _interface().selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus)


def fused_mamba(xz, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, out_proj_weight, A, D, delta_bias):
    """A Mamba block from (x, z) (b, 2 d, l) to its result (b, l, d_model) in one function with causal-conv1d.

    https://github.com/state-spaces/mamba, mamba_inner_fn: B and C are computed inside from x_proj.
    """
    return _interface().mamba_inner_fn(xz.contiguous(), conv_weight, conv_bias, x_proj_weight, dt_proj_weight,
                                       out_proj_weight, None, A, None, None, D,
                                       delta_bias=delta_bias, delta_softplus=True)


@functools.cache
def has_causal_conv() -> bool:
    """Whether causal-conv1d is there too, which the fused function needs."""
    try:
        importlib.import_module("causal_conv1d")
    except Exception:               # as above
        return False
    return True


@functools.cache
def _interface():
    return importlib.import_module("mamba_ssm.ops.selective_scan_interface")
