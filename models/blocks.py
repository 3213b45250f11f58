"""The U-Net's blocks: norm, gated feed-forward network, resizing, encoder, decoder (paper, Figure 3 a and b)."""
from collections.abc import Iterable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .convolution import DepthwiseConv, PointwiseConv


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
    """Gated depth-wise feed-forward network: SiLU(a) * b after a 1x1 and a depth-wise 3x3 convolution, added to x."""

    def __init__(self, dim: int):
        super().__init__()
        self.project_in = PointwiseConv(dim, 2 * dim)
        self.dwconv = DepthwiseConv(2 * dim)
        self.project_out = PointwiseConv(dim, dim)

    def forward(self, x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        return self.project_out.add_to(x, self.dwconv.gated(self.project_in(norm(x))))


class EncoderBlock(nn.Module):
    """Figure 3 (a): two feed-forward networks, no state space module."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm1_ffn, self.norm2_ffn = ChannelNorm(dim), ChannelNorm(dim)
        self.ffn1, self.ffn2 = GatedFFN(dim), GatedFFN(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.ffn1(x, self.norm1_ffn)
        return self.ffn2(x, self.norm2_ffn)


class DecoderBlock(nn.Module):
    """Figure 3 (b): intra-slice, then inter-slice scanning, a feed-forward network after each.

    Ablations put other modules in these two places (paper, Tables 5 and 7).
    """

    def __init__(self, dim: int, intra: nn.Module, inter: nn.Module):
        super().__init__()
        self.norm1_ssm, self.norm2_ssm = ChannelNorm(dim), ChannelNorm(dim)
        self.intra, self.inter = intra, inter
        self.norm1_ffn, self.norm2_ffn = ChannelNorm(dim), ChannelNorm(dim)
        self.ffn1, self.ffn2 = GatedFFN(dim), GatedFFN(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.intra(x, self.norm1_ssm)
        x = self.ffn1(x, self.norm1_ffn)
        x = self.inter(x, self.norm2_ssm)
        return self.ffn2(x, self.norm2_ffn)


class Level(nn.Sequential):
    """The blocks of one level, one after the other. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, blocks: Iterable[nn.Module], checkpoint_activations: bool = False):
        super().__init__(*blocks)
        self.checkpoint_activations = checkpoint_activations

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)     # nothing is drawn inside
            else:
                x = block(x)
        return x


class PatchEmbed(nn.Module):
    """The first 3x3 convolution, image to features."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, 3, padding=1, bias=False)

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
