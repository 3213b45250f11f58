"""Slice and scan: Intra- and Inter-VSSM, the vision state space modules of the decoder.

Paper, Sections 3.2 and 3.3, Figures 2 and 3, Equations 3 to 5. The letters are the paper's: F features, split by
channels into F_h (horizontal branch) and F_v (vertical branch); Y the gate. Both branches share one S6.

Features lie channels-last here, (B, H, W, C): linear maps are matrix products, and rows and columns are scanned where
they lie.
"""
import torch
import torch.nn.functional as F
from torch import nn

from .convolution import DepthwiseConv, PointwiseConv
from .local_pooling import local_mean
from .mamba import S6


class VSSM(nn.Module):
    """Eq. 5: SiLU(Y) * DualScanner(F), (Y, F) = W_d W_p norm(X), added to X. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int, scan_backend: str = "auto", bidirectional: bool = False):
        super().__init__()
        self.proj_in = PointwiseConv(dim, 2 * dim)                                               # W_p
        self.dwconv = DepthwiseConv(2 * dim)         # W_d
        self.proj_out = PointwiseConv(dim, dim)
        self.conv_input = PointwiseConv(dim, dim)
        self.fuse_out = PointwiseConv(dim, dim)
        self.mamba = S6(dim // 2, scan_backend=scan_backend, bidirectional=bidirectional)

    def forward(self, X: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        features, Y = self.split(norm(X))
        scanned = self.dual_scanner(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.join(X, scanned, Y)

    def split(self, X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(F, Y) = W_d W_p X."""
        return self.dwconv(self.proj_in(X)).chunk(2, dim=1)

    def join(self, X: torch.Tensor, scanned: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
        """X + proj_out(SiLU(Y) * what the scanners made of F)."""
        return self.proj_out.add_to(X, scanned * F.silu(Y))

    def dual_scanner(self, features: torch.Tensor) -> torch.Tensor:
        """conv_input, the scans of both branches, and fuse_out: (B, H, W, C) -> (B, H, W, C)."""
        raise NotImplementedError


class IntraVSSM(VSSM):
    """Intra-VSSM, Figure 3 (c): pixel dependencies within each row and each column."""

    def dual_scanner(self, features: torch.Tensor) -> torch.Tensor:
        """Eq. 3: scan every row from left to right (h) and every column from top to bottom (v).

        S6's own projections and the 1x1 convolutions around it have nothing between them: each pair is one map.
        """
        into_h, into_v = (_product(self.mamba.in_proj.weight, half) for half in self.conv_input.matrix.chunk(2))
        out_of_h, out_of_v = (_product(half, self.mamba.out_proj.weight)
                              for half in self.fuse_out.matrix.chunk(2, dim=1))
        rows = self.mamba.scan(F.linear(features, into_h), dim=2)
        columns = self.mamba.scan(F.linear(features, into_v), dim=1)
        return _sum_of_linear(rows, out_of_h, columns, out_of_v)


class InterVSSM(VSSM):
    """Inter-VSSM, Figure 3 (d): dependencies between rows and between columns."""

    window: int | None = None       # of this level's pixels to average, see ``local_pooling``; None: all

    def dual_scanner(self, features: torch.Tensor) -> torch.Tensor:
        """Eq. 4: scan across slices, each compressed to its mean (GAP), and gate the features with the result.

        The branch of F_h scans the H rows' means from top to bottom, that of F_v the W columns' means from left to
        right. The paper names these two the other way round (Inter-Scanner-V scans the rows' means); which half of
        the channels goes where is settled by the released checkpoints.
        """
        F_h, F_v = F.linear(features, self.conv_input.matrix).chunk(2, dim=-1)
        if self.window:
            gate_h, gate_v = self._local_gate(F_h, mean_over=2), self._local_gate(F_v, mean_over=1)
        else:
            gate_h = self.mamba(F_h.mean(dim=2), dim=1).sigmoid().unsqueeze(2)
            gate_v = self.mamba(F_v.mean(dim=1), dim=1).sigmoid().unsqueeze(1)
        out_of_h, out_of_v = self.fuse_out.matrix.chunk(2, dim=1)
        return _sum_of_linear(gate_h * F_h, out_of_h, gate_v * F_v, out_of_v)


    def _local_gate(self, features: torch.Tensor, mean_over: int) -> torch.Tensor:
        """The gate from means over each pixel's own window instead of its whole row or column."""
        means, index = local_mean(features, self.window, mean_over)
        return self.mamba(means, dim=3 - mean_over).sigmoid().index_select(mean_over, index)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of two maps' weights, in their own precision: autocast would round twice what it rounds once."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def _sum_of_linear(a: torch.Tensor, weight_a: torch.Tensor, b: torch.Tensor, weight_b: torch.Tensor) -> torch.Tensor:
    """The linear map of a and b side by side, without putting them side by side."""
    y = torch.addmm(F.linear(a, weight_a).flatten(0, -2), b.flatten(0, -2), weight_b.t())
    return y.unflatten(0, a.shape[:-1])
