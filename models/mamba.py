"""S6: the Mamba block that scans the slices (paper, Section 3.1; Gu & Dao 2023, Figure 3 and Section 3.4).

Names are Mamba's: d_model channels in and out, d_inner = 2 d_model channels inside, d_state states per channel,
dt_rank the rank of the step size's projection, d_conv the width of the causal convolution.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .ops import at_least_fp32
from .ops.causal_conv import causal_conv_silu
from .ops.selective_scan import selective_scan


class S6(nn.Module):
    """A causal, selective scan along L. (*, L, d_model) -> (*, L, d_model).

    Args:
        scan_backend: see ``selective_scan``.
        bidirectional: also scan from end to start with the same weights, and sum before out_proj (paper, Table 6).
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        scan_backend: str = "auto",
        bidirectional: bool = False,
    ):
        super().__init__()
        d_inner = expand * d_model
        self.d_state, self.d_conv, self.dt_rank = d_state, d_conv, math.ceil(d_model / 16)
        self.scan_backend, self.bidirectional = scan_backend, bidirectional
        self.A_log = nn.Parameter(initial_A_log(d_inner, d_state))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, d_inner)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        init_step_size(self.dt_proj)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        xz = self.in_proj(u)
        y = self.scan(xz)
        if self.bidirectional:
            y = y + self.scan(xz.flip(-2)).flip(-2)
        return self.out_proj(y)

    def scan(self, xz: torch.Tensor) -> torch.Tensor:
        """Everything between in_proj and out_proj: (*, L, 2 d_inner) -> (*, L, d_inner)."""
        A = -torch.exp(at_least_fp32(self.A_log))
        x, z = rearrange(xz, "... l (two d) -> two ... d l", two=2)  # views, not copied by the fast backends
        x = causal_conv_silu(x, rearrange(self.conv1d.weight, "d 1 k -> d k"), self.conv1d.bias, self.scan_backend)
        dt, B, C = self.x_proj(x.mT).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = F.linear(dt, self.dt_proj.weight)  # the scan adds its bias, in fp32
        # No autocast in the recurrence: half precision loses the state over long rows.
        with torch.autocast(xz.device.type, enabled=False):
            y = selective_scan(
                x, delta.mT, A, B.mT, C.mT, self.D, z, self.dt_proj.bias, delta_softplus=True, backend=self.scan_backend
            )
        return y.mT


def initial_A_log(d_inner: int, d_state: int) -> torch.Tensor:
    """A = -1, -2, …, -N in every channel (S4D-Real; Gu & Dao 2023, Section 3.6), as log(-A): (d_inner, d_state)."""
    A_log = torch.empty(d_inner, d_state)
    if A_log.is_meta:  # see `init_step_size`
        return A_log
    return A_log.copy_(torch.log(torch.arange(1, d_state + 1).float()))


def init_step_size(projection: nn.Linear) -> None:
    """Initial step sizes are log-uniform in [0.001, 0.1] (Gu & Dao 2023, Section 3.6); bias = softplus^-1(dt)."""
    bound = projection.in_features**-0.5
    nn.init.uniform_(projection.weight, -bound, bound)
    if projection.bias.is_meta:  # nothing to initialise, and arithmetic on it would import PyTorch's compiler
        return
    log_dt = torch.empty_like(projection.bias).uniform_(math.log(1e-3), math.log(0.1))
    dt = log_dt.exp().clamp(min=1e-4)
    with torch.no_grad():
        projection.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
