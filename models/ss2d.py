"""SS2D: flatten and scan, the vision module that slice and scan replaces (paper, Section 4.3, Table 5, Figure 6 b).

VMamba (Liu et al. 2024, https://arxiv.org/abs/2401.10166, Section 4.2) flattens the features into one sequence along
four routes; MambaIR (Guo et al. 2024, https://arxiv.org/abs/2402.15648, Section 3.3) restores images with it. Here it
replaces both the Intra- and the Inter-VSSM.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .blocks import Conv1x1
from .mamba import init_step_size, initial_A_log
from .ops import at_least_fp32
from .ops.selective_scan import selective_scan
from .registry import Options, state_space


class Route(nn.Module):
    """S6's recurrence along one route, with its own step sizes, A, B, C and D. (B, L, E) -> (B, L, E)."""

    def __init__(self, d_inner: int, dt_rank: int, d_state: int, scan_backend: str):
        super().__init__()
        self.sizes, self.scan_backend = (dt_rank, d_state, d_state), scan_backend
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        init_step_size(self.dt_proj)
        self.A_log = nn.Parameter(initial_A_log(d_inner, d_state))
        self.D = nn.Parameter(torch.ones(d_inner))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        A = -torch.exp(at_least_fp32(self.A_log))
        dt, B, C = self.x_proj(x).split(self.sizes, dim=-1)
        delta = F.linear(dt, self.dt_proj.weight)
        u, delta, B, C = (t.transpose(1, 2) for t in (x, delta, B, C))
        with torch.autocast(x.device.type, enabled=False):  # as in S6: half precision loses the state
            y = selective_scan(
                u, delta, A, B, C, self.D, None, self.dt_proj.bias, delta_softplus=True, backend=self.scan_backend
            )
        return y.transpose(1, 2)


@state_space("ss2d")
class SS2D(nn.Module):
    """Scan the rows as one sequence and the columns as one, each in both directions. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int, options: Options = Options(), expand: float = 1.5, d_state: int = 16):  # noqa: B008
        super().__init__()
        d_inner, dt_rank = int(expand * dim), math.ceil(dim / 16)
        self.in_proj = Conv1x1(dim, 2 * d_inner)
        self.conv2d = nn.Conv2d(d_inner, d_inner, 3, padding=1, groups=d_inner)
        self.routes = nn.ModuleList(Route(d_inner, dt_rank, d_state, options.scan_backend) for _ in range(4))
        self.out_norm = nn.LayerNorm(d_inner)
        self.out_proj = Conv1x1(d_inner, dim)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        x, z = self.in_proj(X).chunk(2, dim=1)
        y = self.scan(rearrange(F.silu(self.conv2d(x)), "b e h w -> b h w e"))
        with torch.autocast(y.device.type, enabled=False):
            y = self.out_norm(y.to(self.out_norm.weight.dtype))
        return self.out_proj(rearrange(y, "b h w e -> b e h w") * F.silu(z))

    def scan(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of the four routes at each pixel: (B, H, W, E) -> (B, H, W, E)."""
        height, width = x.shape[1:3]
        rows, columns = rearrange(x, "b h w e -> b (h w) e"), rearrange(x, "b h w e -> b (w h) e")
        right, down, left, up = self.routes
        by_rows = right(rows) + left(rows.flip(1)).flip(1)
        by_columns = down(columns) + up(columns.flip(1)).flip(1)
        by_rows = rearrange(by_rows, "b (h w) e -> b h w e", h=height)
        return by_rows + rearrange(by_columns, "b (w h) e -> b h w e", w=width)
