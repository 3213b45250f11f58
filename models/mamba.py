"""S6: the Mamba block that scans the slices (paper, Section 3.1; Gu & Dao 2023, Figure 3 and Section 3.4).

Names are Mamba's: d_model channels in and out, d_inner = 2 d_model channels inside, d_state states a channel,
dt_rank the rank of the step size's projection, d_conv the width of the causal convolution.
"""
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .selective_scan import resolve_backend, selective_scan
from .selective_scan.mamba_kernel import fused_mamba, has_causal_conv


class S6(nn.Module):
    """(B, L, d_model) -> (B, L, d_model): a causal, selective scan along L."""

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, scan_backend: str = "auto"):
        super().__init__()
        d_inner = expand * d_model
        self.d_state, self.d_conv, self.dt_rank = d_state, d_conv, math.ceil(d_model / 16)
        self.scan_backend = scan_backend
        self.A_log = nn.Parameter(torch.log(torch.arange(1, d_state + 1).float()).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, d_inner)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self._init_step_size()

    def _init_step_size(self, dt_min: float = 1e-3, dt_max: float = 0.1, dt_floor: float = 1e-4) -> None:
        """Steps start log-uniform in [dt_min, dt_max] (Gu & Dao 2023, Section 3.6); the bias is softplus' inverse."""
        nn.init.uniform_(self.dt_proj.weight, -self.dt_rank ** -0.5, self.dt_rank ** -0.5)
        log_dt = torch.empty_like(self.dt_proj.bias).uniform_(math.log(dt_min), math.log(dt_max))
        dt = log_dt.exp().clamp(min=dt_floor)
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        backend = resolve_backend(self.scan_backend, u.device, u.dtype)
        xz = rearrange(self.in_proj(u), "b l d -> b d l")
        A = -torch.exp(self.A_log.float() if self.A_log.dtype != torch.float64 else self.A_log)
        if backend == "mamba_ssm" and has_causal_conv():
            return fused_mamba(xz, self.conv1d.weight, self.conv1d.bias, self.x_proj.weight, self.dt_proj.weight,
                               self.out_proj.weight, A, self.D, self.dt_proj.bias)

        x, z = xz.chunk(2, dim=1)
        x = F.silu(self._causal_conv(x))
        dt, B, C = self.x_proj(rearrange(x, "b d l -> b l d")).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = F.linear(dt, self.dt_proj.weight)          # its bias joins inside the scan, in fp32
        delta, B, C = (rearrange(t, "b l d -> b d l") for t in (delta, B, C))
        # Autocast must not reach into the recurrence: half precision loses the state over long rows.
        with torch.autocast(u.device.type, enabled=False):
            y = selective_scan(x, delta, A, B, C, self.D, z, self.dt_proj.bias, delta_softplus=True, backend=backend)
        return self.out_proj(rearrange(y, "b d l -> b l d"))

    def _causal_conv(self, x: torch.Tensor) -> torch.Tensor:
        """Each step sees itself and the three before it: y_t = bias + sum over k of weight_k x_{t-3+k}.

        Written as shifted multiply-adds: x lies with channels innermost, where a depth-wise Conv1d would copy it.
        """
        weight, length = self.conv1d.weight.squeeze(1), x.shape[-1]                # (d, d_conv)
        x = rearrange(F.pad(x, (self.d_conv - 1, 0)), "b d l -> b l d")
        y = self.conv1d.bias + sum(weight[:, k] * x[:, k:k + length] for k in range(self.d_conv))
        return rearrange(y, "b l d -> b d l")
