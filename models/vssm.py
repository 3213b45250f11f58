"""Slice and scan: the Intra- and Inter-Scanner, and the vision state space modules around them.

Paper, Sections 3.2 and 3.3, Figures 2 and 3, Equations 3 to 5. The letters are the paper's: F features, split by
channels into F_h (horizontal branch) and F_v (vertical branch); Y the gate. Both branches share one S6.
"""
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .mamba import S6


def intra_scanner(F_h: torch.Tensor, F_v: torch.Tensor, s6: S6) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 3: scan every row from left to right (h) and every column from top to bottom (v).

    Args and result: two (B, C/2, H, W) feature maps, the horizontal and the vertical branch.
    """
    b, _, h, w = F_h.shape
    rows = rearrange(F_h, "b c h w -> (b h) w c")
    columns = rearrange(F_v, "b c h w -> (b w) h c")
    rows, columns = _scan_both(rows, columns, s6)
    return rearrange(rows, "(b h) w c -> b c h w", h=h), rearrange(columns, "(b w) h c -> b c h w", w=w)


def inter_scanner(F_h: torch.Tensor, F_v: torch.Tensor, s6: S6) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 4: scan across slices, each compressed to its mean (GAP), and gate the features with the result.

    The branch of F_h scans the H rows' means from top to bottom, that of F_v the W columns' means from left to right.
    The paper names these two the other way round (Inter-Scanner-V scans the rows' means); which half of the channels
    goes where is settled by the released checkpoints.
    """
    row_means = rearrange(F_h.mean(dim=3), "b c h -> b h c")
    column_means = rearrange(F_v.mean(dim=2), "b c w -> b w c")
    rows, columns = _scan_both(row_means, column_means, s6)
    gate_h = rearrange(rows, "b h c -> b c h 1").sigmoid()
    gate_v = rearrange(columns, "b w c -> b c 1 w").sigmoid()
    return gate_h * F_h, gate_v * F_v


def _scan_both(rows: torch.Tensor, columns: torch.Tensor, s6: S6) -> tuple[torch.Tensor, torch.Tensor]:
    """S6 over both branches; sequences of one length go as one batch, since they share the weights."""
    if rows.shape[1] != columns.shape[1]:
        return s6(rows), s6(columns)
    return s6(torch.cat([rows, columns])).split([len(rows), len(columns)])


class VSSM(nn.Module):
    """Eq. 5 without its residual: SiLU(Y) * DualScanner(F), (Y, F) = W_d W_p X. (B, C, H, W) -> (B, C, H, W)."""

    dual_scanner = None     # intra_scanner or inter_scanner

    def __init__(self, dim: int, scan_backend: str = "auto"):
        super().__init__()
        self.proj_in = nn.Conv2d(dim, 2 * dim, 1, bias=False)                                       # W_p
        self.dwconv = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim, bias=False)         # W_d
        self.proj_out = nn.Conv2d(dim, dim, 1, bias=False)
        self.conv_input = nn.Conv2d(dim, dim, 1, bias=False)
        self.fuse_out = nn.Conv2d(dim, dim, 1, bias=False)
        self.mamba = S6(dim // 2, scan_backend=scan_backend)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        features, Y = self.dwconv(self.proj_in(X)).chunk(2, dim=1)
        F_h, F_v = self.conv_input(features).chunk(2, dim=1)
        scanned = torch.cat(self.dual_scanner(F_h, F_v, self.mamba), dim=1)
        return self.proj_out(self.fuse_out(scanned) * F.silu(Y))


class IntraVSSM(VSSM):
    """Intra-VSSM, Figure 3 (c): pixel dependencies within each row and each column."""

    dual_scanner = staticmethod(intra_scanner)


class InterVSSM(VSSM):
    """Inter-VSSM, Figure 3 (d): dependencies between rows and between columns."""

    dual_scanner = staticmethod(inter_scanner)
