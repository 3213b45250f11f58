"""Mamba's block S6 for inference on a CPU, in one pass over its input, in C compiled at first use (native/s6.c).

Intermediate features are held for only a few steps of a sequence at a time. The reference is `models.mamba.S6`.
"""

from ctypes import c_int32, c_int64, c_void_p

import torch

from . import empty_adjacent
from .native.compiler import call, compiled
from .native.view import View, address, structure

WIDTH = 4  # of the causal convolution in C


def s6(x: torch.Tensor, weights: dict[str, torch.Tensor], overwrite_x: bool = False) -> torch.Tensor:
    """S6 along L, in one direction, without gradients.

    Args:
        x: (B, slices, L, d_model), float32.
        weights: those of `models.mamba.S6` by name (its state dict); a convolution of width 4.
        overwrite_x: whether the result replaces x, if x's channels are adjacent.
    Returns:
        The same shape, and the order of dimensions in memory.
    Raises:
        ValueError: for weights of other shapes, names, or dtypes, or another x.
    """
    if x.dim() != 4 or any(t.dtype != torch.float32 or t.device.type != "cpu" for t in (x, *weights.values())):
        raise ValueError("x (B, slices, L, d_model) and the weights must be float32 on the CPU")
    model, states, (inner, rank) = x.shape[-1], weights["A_log"].shape[-1], weights["dt_proj.weight"].shape
    shapes = {
        "in_proj.weight": (2 * inner, model),
        "conv1d.weight": (inner, 1, WIDTH),
        "conv1d.bias": (inner,),
        "x_proj.weight": (rank + 2 * states, inner),
        "dt_proj.weight": (inner, rank),
        "dt_proj.bias": (inner,),
        "A_log": (inner, states),
        "D": (inner,),
        "out_proj.weight": (model, inner),
    }
    if shapes != {name: tuple(weight.shape) for name, weight in weights.items()}:
        raise ValueError(f"weights must have the shapes {shapes}")
    w = {name: weights[name].contiguous() for name in shapes}
    w["A_log"] = -torch.exp(w["A_log"])
    x = x if x.stride(-1) == 1 or model == 1 else x.contiguous()
    y, sizes = x if overwrite_x else empty_adjacent(x.mT).mT, (*x.shape, inner, rank)
    parameters = _Parameters(View.of(x.mT), View.of(y.mT), *map(address, w.values()), *sizes, torch.get_num_threads())
    call(compiled("s6.c", f"STATES={states}").s6, parameters)
    return y


# s6.c's S6.
_Parameters = structure(
    (View, "x y"),
    (c_void_p, "W_in W_conv conv_bias W_x W_dt dt_bias A D W_out"),
    (c_int64, "batch0 batch1 length model inner rank"),
    (c_int32, "threads"),
)
