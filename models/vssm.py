"""Slice and scan: Intra- and Inter-VSSM, the vision state space modules of the decoder.

Paper, Sections 3.2 and 3.3, Figures 2 and 3, Equations 3 to 5. Symbols are the paper's: X the input; F the features,
split by channels into F_h (horizontal branch) and F_v (vertical branch); Y the gate. Both branches share one S6.
"""

import torch
from einops import rearrange, reduce
from torch import nn

from .blocks import Conv1x1, Depthwise3x3
from .mamba import S6
from .ops.silu_gate import silu_gate
from .registry import Options, state_space


class VSSM(nn.Module):
    """Eq. 5 without norm and residual, which are in DecoderBlock: SiLU(Y) * DualScanner(F), (F, Y) = W_d W_p X.

    (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, dim: int, options: Options = Options()):  # noqa: B008 (immutable)
        super().__init__()
        self.proj_in = Conv1x1(dim, 2 * dim)  # W_p
        self.dwconv = Depthwise3x3(2 * dim)  # W_d
        self.proj_out = Conv1x1(dim, dim)
        self.conv_input = Conv1x1(dim, dim)
        self.fuse_out = Conv1x1(dim, dim)
        self.mamba = S6(dim // 2, scan_backend=options.scan_backend, bidirectional=options.scan == "bidirectional")

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        features, Y = self.dwconv(self.proj_in(X)).chunk(2, dim=1)
        F_h, F_v = self.conv_input(features).chunk(2, dim=1)
        scanned = self.fuse_out(torch.cat(self.dual_scanner(F_h, F_v), dim=1))
        return self.proj_out(silu_gate(scanned, Y))  # SiLU(Y) * DualScanner(F)

    def dual_scanner(self, F_h: torch.Tensor, F_v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scan both branches: (B, C / 2, H, W) each -> the same shapes."""
        raise NotImplementedError


@state_space("intra")
class IntraVSSM(VSSM):
    """Intra-VSSM, Figure 3 (c): pixel dependencies within each row and each column."""

    def dual_scanner(self, F_h: torch.Tensor, F_v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. 3: scan every row from left to right (h) and every column from top to bottom (v)."""
        rows = self.mamba(rearrange(F_h, "b c h w -> b h w c"))
        columns = self.mamba(rearrange(F_v, "b c h w -> b w h c"))
        return rearrange(rows, "b h w c -> b c h w"), rearrange(columns, "b w h c -> b c h w")


@state_space("inter")
class InterVSSM(VSSM):
    """Inter-VSSM, Figure 3 (d): dependencies between rows and between columns."""

    def dual_scanner(self, F_h: torch.Tensor, F_v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. 4: scan across slices, each compressed to its mean (GAP), and gate the features with the result.

        The branch of F_h scans the means of the H rows from top to bottom, that of F_v the means of the W columns from
        left to right. The paper swaps these two names (its Inter-Scanner-V scans the rows' means); the released
        checkpoints need this order of the channels.
        """
        gate_h = self.mamba(reduce(F_h, "b c h w -> b h c", "mean")).sigmoid()
        gate_v = self.mamba(reduce(F_v, "b c h w -> b w c", "mean")).sigmoid()
        return F_h * rearrange(gate_h, "b h c -> b c h 1"), F_v * rearrange(gate_v, "b w c -> b c 1 w")
