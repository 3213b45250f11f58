"""Parts of the blocks for inference on a CPU, each one pass over the features, in C compiled at first use (fused.c).

Intermediate features are held for only a few rows of pixels at a time. That takes less memory, and less time, as these
rows stay in the cache. Features are float32 and channels last in memory; there are no gradients.
"""

from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .channel_norm import channel_norm_ref
from .depthwise import depthwise_ref
from .native import view
from .native.compiler import call, compiled
from .native.view import View, address, structure
from .silu_gate import silu_gate_ref


class HiddenWeights(NamedTuple):
    """What feed-forward networks and state space modules begin with: W_d W_in norm(x).

    Weights in PyTorch's shapes: norm_weight and norm_bias (C,), W_in (H, C, 1, 1), W_d (H, 1, 3, 3) depth-wise.
    """

    norm_weight: torch.Tensor
    norm_bias: torch.Tensor
    eps: float
    W_in: torch.Tensor
    W_d: torch.Tensor


def runs_in_c(x: torch.Tensor) -> bool:
    """Whether features like x are computed in C."""
    return view.runs_in_c("fused.c", x) and not torch.is_autocast_enabled("cpu")


def feed_forward(x: torch.Tensor, hidden: HiddenWeights, W_out: torch.Tensor) -> torch.Tensor:
    """x + W_out (SiLU(a) b), in place of x; (a, b) = W_d W_in norm(x).

    Args:
        x: (B, C, H, W), channels last in memory.
        hidden: of a and b.
        W_out: (C, channels of a, 1, 1).
    """
    return _run("feed_forward", x, hidden, W_out, halves=2)


def feed_forward_ref(x: torch.Tensor, hidden: HiddenWeights, W_out: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch."""
    a, b = _hidden_ref(x, hidden).chunk(2, dim=1)
    return x.add_(F.conv2d(F.silu(a) * b, W_out))


def branches(x: torch.Tensor, hidden: HiddenWeights, W: torch.Tensor) -> torch.Tensor:
    """W W_d W_in norm(x).

    Args:
        x: (B, C, H, W), channels last in memory.
        W: (C', channels of W_d, 1, 1).

    Returns:
        (B, C', H, W), channels last in memory.
    """
    batch, _, height, width = x.shape
    f = x.new_empty(batch, height, width, len(W)).movedim(-1, 1)
    _run("branches", x, hidden, W, f=f)
    return f


def branches_ref(x: torch.Tensor, hidden: HiddenWeights, W: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch."""
    return F.conv2d(_hidden_ref(x, hidden), W)


def gated_projection(
    x: torch.Tensor, f: torch.Tensor, hidden: HiddenWeights, W_f: torch.Tensor, W_out: torch.Tensor
) -> torch.Tensor:
    """x + W_out (SiLU(a) W_f f), in place of x; a = W_d W_in norm(x).

    Args:
        x: (B, C, H, W), channels last in memory.
        f: (B, C', H, W), channels last in memory.
        W_f: (channels of a, C', 1, 1).
        W_out: (C, channels of a, 1, 1).
    """
    return _run("gated_projection", x, hidden, W_out, f=f, W_f=W_f)


def gated_projection_ref(
    x: torch.Tensor, f: torch.Tensor, hidden: HiddenWeights, W_f: torch.Tensor, W_out: torch.Tensor
) -> torch.Tensor:
    """The same in plain PyTorch."""
    return x.add_(F.conv2d(silu_gate_ref(F.conv2d(f, W_f), _hidden_ref(x, hidden)), W_out))


def _hidden_ref(x: torch.Tensor, hidden: HiddenWeights) -> torch.Tensor:
    normed = channel_norm_ref(x, hidden.norm_weight, hidden.norm_bias, hidden.eps)
    return depthwise_ref(F.conv2d(normed, hidden.W_in), hidden.W_d)


# fused.c's Pass.
_Pass = structure(
    (View, "x f"),
    (c_int64, "batch height width channels f_channels"),
    (c_void_p, "norm_weight norm_bias W_in W_d W_f W_out"),
    (c_int64, "half outputs"),
    (c_float, "eps"),
    (c_int32, "threads"),
)


def _run(
    name: str,
    x: torch.Tensor,
    hidden: HiddenWeights,
    W_out: torch.Tensor,
    f: torch.Tensor | None = None,
    W_f: torch.Tensor | None = None,
    halves: int = 1,
) -> torch.Tensor:
    """Call a function of fused.c; returns x."""
    (batch, channels, height, width), both = x.shape, len(hidden.W_in)
    half, f_channels = both // halves, channels if f is None else f.shape[1]
    _require_features(x, x.shape)
    _require(hidden.norm_weight, hidden.norm_bias, shape=(channels,))
    _require(hidden.W_in, shape=(both, channels, 1, 1))
    _require(hidden.W_d, shape=(both, 1, 3, 3))
    _require(W_out, shape=(len(W_out) if name == "branches" else channels, half, 1, 1))
    if f is not None:
        _require_features(f, (batch, f_channels, height, width))
    if W_f is not None:
        _require(W_f, shape=(half, f_channels, 1, 1))
    given = hidden.norm_weight, hidden.norm_bias, hidden.W_in, hidden.W_d, W_f, W_out
    weights = [None if w is None else w.contiguous() for w in given]
    parameters = _Pass(
        *(_view(x), _view(f), batch, height, width, channels, f_channels, *map(address, weights)),
        *(half, len(W_out), hidden.eps, torch.get_num_threads()),
    )
    call(getattr(compiled("fused.c"), name), parameters)
    return x


def _view(features: torch.Tensor | None) -> View:
    """Of (B, C, H, W) as fused.c takes it: image, row, column."""
    return View.of(None if features is None else features.transpose(1, 2))


def _require_features(features: torch.Tensor, shape: Sequence[int]) -> None:
    _require(features, shape=shape)
    if features.stride(1) != 1 and features.shape[1] > 1:
        raise ValueError("features must be channels last in memory")


def _require(*tensors: torch.Tensor, shape: Sequence[int]) -> None:
    for tensor in tensors:
        if tensor.shape != shape or tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            found = f"{tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"
            raise ValueError(f"a tensor must be {tuple(shape)}, float32 on the CPU, not {found}")
