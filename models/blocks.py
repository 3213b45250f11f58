"""The U-Net's blocks: norm, gated feed-forward network, resizing, encoder, decoder (paper, Figure 3 a and b)."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .ops.channel_norm import channel_norm
from .ops.depthwise import depthwise, gated_depthwise, supports
from .ops.pointwise import pointwise


class Conv1x1(nn.Conv2d):
    """(B, C_in, H, W) -> (B, C_out, H, W), no bias."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__(channels_in, channels_out, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return pointwise(x, self.weight, self.bias)


class Conv3x3(nn.Conv2d):
    """(B, C_in, H, W) -> (B, C_out, H, W), zero padding, no bias."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__(channels_in, channels_out, 3, padding=1, bias=False)


class Depthwise3x3(nn.Conv2d):
    """One filter per channel. (B, C, H, W) -> (B, C, H, W), zero padding, no bias; see also `gated`."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1, groups=channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return depthwise(x, self.weight) if supports(self) else super().forward(x)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__()
        self.body = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return channel_norm(x, self.body.weight, self.body.bias, self.body.eps)


class GatedFFN(nn.Module):
    """Gated depth-wise feed-forward network. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__()
        self.project_in = Conv1x1(dim, 2 * dim)
        self.dwconv = Depthwise3x3(2 * dim)
        self.project_out = Conv1x1(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project_out(gated(self.dwconv, self.project_in(x)))


def gated(dwconv: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """SiLU(a) * b, (a, b) = dwconv(x): in one pass for a Depthwise3x3. (B, 2 C, H, W) -> (B, C, H, W)."""
    if type(dwconv) is Depthwise3x3 and supports(dwconv):
        return gated_depthwise(x, dwconv.weight)
    a, b = dwconv(x).chunk(2, dim=1)
    return F.silu(a) * b


class EncoderBlock(nn.Module):
    """Figure 3 (a): two feed-forward networks, no state space module. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm1_ffn, self.norm2_ffn = ChannelNorm(dim), ChannelNorm(dim)
        self.ffn1, self.ffn2 = GatedFFN(dim), GatedFFN(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ffn1(self.norm1_ffn(x))
        return x + self.ffn2(self.norm2_ffn(x))


class DecoderBlock(nn.Module):
    """Figure 3 (b): an Intra- and an Inter-VSSM, a feed-forward network after each. (B, C, H, W) -> (B, C, H, W).

    Ablations replace both state space modules (paper, Tables 5 and 7).
    """

    def __init__(self, dim: int, intra: nn.Module, inter: nn.Module):
        super().__init__()
        self.norm1_ssm, self.norm2_ssm = ChannelNorm(dim), ChannelNorm(dim)
        self.intra, self.inter = intra, inter
        self.norm1_ffn, self.norm2_ffn = ChannelNorm(dim), ChannelNorm(dim)
        self.ffn1, self.ffn2 = GatedFFN(dim), GatedFFN(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.intra(self.norm1_ssm(x))
        x = x + self.ffn1(self.norm1_ffn(x))
        x = x + self.inter(self.norm2_ssm(x))
        return x + self.ffn2(self.norm2_ffn(x))


class Level(nn.Sequential):
    """The blocks of one level in sequence. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, blocks: Iterable[nn.Module], checkpoint_activations: bool = False):
        super().__init__(*blocks)
        self.checkpoint_activations = checkpoint_activations

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)  # no randomness
            else:
                x = block(x)
        return x


class PatchEmbed(nn.Module):
    """The first 3x3 convolution: image (B, channels, H, W) -> features (B, dim, H, W)."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.proj = Conv3x3(channels, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


class Resize(nn.Module):
    """Bilinear resizing by 2 or 1/2, or another whole number or its inverse."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Integer arithmetic: torch.export cannot simplify sizes computed from floats.
        up, down = round(max(self.factor, 1)), round(max(1 / self.factor, 1))
        return F.interpolate(x, size=[side * up // down for side in x.shape[2:]], mode="bilinear")


class Rescale(nn.Module):
    """Bilinear resizing, then a 3x3 convolution. (B, dim_in, H, W) -> (B, dim_out, factor H, factor W)."""

    def __init__(self, dim_in: int, dim_out: int, factor: float):
        super().__init__()
        self.body = nn.Sequential(Resize(factor), Conv3x3(dim_in, dim_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)
