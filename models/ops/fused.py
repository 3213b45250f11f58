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
    """What feed-forward networks and state space modules begin with: (a, b) = W_d W_in norm(x).

    Weights in PyTorch's shapes: norm_weight and norm_bias (C,), W_in (2 H, C, 1, 1), W_d (2 H, 1, 3, 3) depth-wise.
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
    """x + W_out (SiLU(a) b), in place of x.

    Args:
        x: (B, C, H, W), channels last in memory.
        W_out: (C, H, 1, 1).
    """
    _run("feed_forward", x, hidden, W_out, range(x.shape[2]), range(x.shape[3]), halves=2)
    return x


def feed_forward_ref(x: torch.Tensor, hidden: HiddenWeights, W_out: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch."""
    a, b = _hidden_ref(x, hidden)
    return x.add_(F.conv2d(F.silu(a) * b, W_out))


def branches(
    x: torch.Tensor, hidden: HiddenWeights, W: torch.Tensor, rows: range, columns: range, gate: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(W a, b) of some rows and columns, or (W a, None) if the gate b is not wanted.

    Args:
        x: (B, C, H, W), channels last in memory.
        W: (C', H, 1, 1).
    Returns:
        (B, C', rows, columns) and (B, H, rows, columns).
    """
    size = len(x), len(rows), len(columns)
    f = x.new_empty(*size, len(W)).movedim(-1, 1)
    b = x.new_empty(*size, len(hidden.W_in) // 2).movedim(-1, 1) if gate else None
    _run("branches", x, hidden, W, rows, columns, halves=2 if gate else 1, f=f, gate=b)
    return f, b


def branches_ref(
    x: torch.Tensor, hidden: HiddenWeights, W: torch.Tensor, rows: range, columns: range, gate: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The same in plain PyTorch."""
    a, b = (part[:, :, rows.start : rows.stop, columns.start : columns.stop] for part in _hidden_ref(x, hidden))
    return F.conv2d(a, W), b if gate else None


def gated_projection(
    x: torch.Tensor,
    h: torch.Tensor,
    v: torch.Tensor,
    gate: torch.Tensor,
    W_in: torch.Tensor,
    W_out: torch.Tensor,
    scale_h: torch.Tensor | None = None,
    scale_v: torch.Tensor | None = None,
) -> torch.Tensor:
    """x + W_out (SiLU(gate) W_in [scale_h h, scale_v v]).

    Args:
        x, gate: (B, C, H, W).
        h, v: (B, C / 2, H, W).
        W_in, W_out: (C, C, 1, 1).
        scale_h, scale_v: broadcastable to h and v; None: 1.
    """
    batch, channels, height, width = x.shape
    half = (batch, channels // 2, height, width)
    scale_h, scale_v = (None if scale is None else scale.expand(half) for scale in (scale_h, scale_v))
    x, h, v, gate, scale_h, scale_v = map(_channels_adjacent, (x, h, v, gate, scale_h, scale_v))
    _require(x, gate, shape=x.shape)
    _require(h, v, shape=half)
    _require(W_in, W_out, shape=(channels, channels, 1, 1))
    out = torch.empty_like(x, memory_format=torch.channels_last)
    W_in, W_out = W_in.contiguous(), W_out.contiguous()
    maps = map(_view, (x, h, v, scale_h, scale_v, gate, out))
    parameters = _Gated(*maps, batch, height, width, channels, address(W_in), address(W_out), torch.get_num_threads())
    call(compiled("fused.c").gated_projection, parameters)
    return out


def gated_projection_ref(
    x: torch.Tensor,
    h: torch.Tensor,
    v: torch.Tensor,
    gate: torch.Tensor,
    W_in: torch.Tensor,
    W_out: torch.Tensor,
    scale_h: torch.Tensor | None = None,
    scale_v: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same in plain PyTorch."""
    h = h if scale_h is None else scale_h * h
    v = v if scale_v is None else scale_v * v
    mixed = F.conv2d(torch.cat([h, v], dim=1), W_in)
    return x + F.conv2d(silu_gate_ref(mixed, gate), W_out)


def _hidden_ref(x: torch.Tensor, hidden: HiddenWeights) -> tuple[torch.Tensor, ...]:
    normed = channel_norm_ref(x, hidden.norm_weight, hidden.norm_bias, hidden.eps)
    return depthwise_ref(F.conv2d(normed, hidden.W_in), hidden.W_d).chunk(2, dim=1)


# fused.c's Pass and Gated.
_Pass = structure(
    (View, "x"),
    (c_int64, "batch height width channels"),
    (c_void_p, "norm_weight norm_bias W_in W_d W_out"),
    (c_int64, "half halves outputs"),
    (View, "f gate"),
    (c_int64, "top bottom left right"),
    (c_float, "eps"),
    (c_int32, "threads"),
)
_Gated = structure(
    (View, "x h v scale_h scale_v gate out"),
    (c_int64, "batch height width channels"),
    (c_void_p, "W_in W_out"),
    (c_int32, "threads"),
)


def _run(name, x, hidden, W_out, rows, columns, halves, f=None, gate=None):
    """Call a function of fused.c on a region of x."""
    batch, channels, height, width = x.shape
    both = len(hidden.W_in)
    _require(x, shape=x.shape)
    if x.stride(1) != 1 and channels > 1:
        raise ValueError("features must be channels last in memory")
    _require(hidden.norm_weight, hidden.norm_bias, shape=(channels,))
    _require(hidden.W_in, shape=(both, channels, 1, 1))
    _require(hidden.W_d, shape=(both, 1, 3, 3))
    _require(W_out, shape=(len(W_out), both // 2, 1, 1))
    weights = [w.contiguous() for w in (hidden.norm_weight, hidden.norm_bias, hidden.W_in, hidden.W_d, W_out)]
    region = rows.start, rows.stop, columns.start, columns.stop
    parameters = _Pass(
        *(_view(x), batch, height, width, channels, *map(address, weights), both // 2, halves, len(W_out)),
        *(_view(f), _view(gate), *region, hidden.eps, torch.get_num_threads()),
    )
    call(getattr(compiled("fused.c"), name), parameters)


def _view(features: torch.Tensor | None) -> View:
    """Of (B, C, H, W) as fused.c takes it: image, row, column."""
    return View.of(None if features is None else features.transpose(1, 2))


def _require(*tensors: torch.Tensor, shape: Sequence[int]) -> None:
    for tensor in tensors:
        if tensor.shape != shape or tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            found = f"{tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"
            raise ValueError(f"a tensor must be {tuple(shape)}, float32 on the CPU, not {found}")


def _channels_adjacent(features: torch.Tensor | None) -> torch.Tensor | None:
    if features is None or features.stride(1) == 1 or features.shape[1] == 1:
        return features
    return features.contiguous(memory_format=torch.channels_last)
