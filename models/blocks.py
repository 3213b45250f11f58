"""The U-Net's blocks: norm, gated feed-forward network, resizing, encoder, decoder (paper, Figure 3 a and b)."""
import torch
import torch.nn.functional as F
from torch import nn

from .vssm import InterVSSM, IntraVSSM


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, in fp32 at least. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__()
        self.body = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Channels come last in memory (see XYScanNet.forward), so that both permutations are free.
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.body.weight.dtype)
            return self.body(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GatedFFN(nn.Module):
    """Gated depth-wise feed-forward network: SiLU(a) * b after a 1x1 and a depth-wise 3x3 convolution."""

    def __init__(self, dim: int):
        super().__init__()
        self.project_in = nn.Conv2d(dim, 2 * dim, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim, bias=False)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.silu(a) * b)


class EncoderBlock(nn.Module):
    """Figure 3 (a): two feed-forward networks, no state space module."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm1_ffn, self.norm2_ffn = ChannelNorm(dim), ChannelNorm(dim)
        self.ffn1, self.ffn2 = GatedFFN(dim), GatedFFN(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ffn1(self.norm1_ffn(x))
        return x + self.ffn2(self.norm2_ffn(x))


class DecoderBlock(nn.Module):
    """Figure 3 (b): intra-slice, then inter-slice scanning, a feed-forward network after each."""

    def __init__(self, dim: int, scan_backend: str = "auto"):
        super().__init__()
        self.norm1_ssm, self.norm2_ssm = ChannelNorm(dim), ChannelNorm(dim)
        self.intra = IntraVSSM(dim, scan_backend)
        self.inter = InterVSSM(dim, scan_backend)
        self.norm1_ffn, self.norm2_ffn = ChannelNorm(dim), ChannelNorm(dim)
        self.ffn1, self.ffn2 = GatedFFN(dim), GatedFFN(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.intra(self.norm1_ssm(x))
        x = x + self.ffn1(self.norm1_ffn(x))
        x = x + self.inter(self.norm2_ssm(x))
        return x + self.ffn2(self.norm2_ffn(x))


class PatchEmbed(nn.Module):
    """The first 3x3 convolution, image to features."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


class Rescale(nn.Module):
    """Bilinear resizing by ``factor``, then a 3x3 convolution from ``dim_in`` to ``dim_out`` channels."""

    def __init__(self, dim_in: int, dim_out: int, factor: float):
        super().__init__()
        resize = nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False)
        self.body = nn.Sequential(resize, nn.Conv2d(dim_in, dim_out, 3, padding=1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)
