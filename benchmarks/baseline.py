"""The baseline of the benchmarks: XYScanNet as a plain sequence of eager PyTorch calls.

It follows the released code's path: fp32, NCHW throughout, a copy before and after every normalisation and every scan,
each branch scanned separately, Mamba's block as mamba-ssm computes it (fused where its kernels are installed), fusion
features resized before their 1x1 convolutions, one KL gate a batch. Parameter names are the network's own, so it loads
the same weights. Of ``models`` it uses only the selective scan: an optimisation there does not speed up the baseline.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from models.ops.selective_scan import selective_scan


class Baseline(nn.Module):
    """(B, 3, H, W) images in [-0.5, 0.5] -> the restored images. H and W are multiples of 4.

    Args:
        dim: channels at level 1, as in ``models.XYScanNet``.
        num_blocks: blocks at levels 1, 2 and 3.
        scan_backend: backend of ``selective_scan``, called with contiguous (b, d, l) tensors.
    """

    def __init__(self, dim: int = 48, num_blocks: Sequence[int] = (3, 3, 6), scan_backend: str = "reference"):
        super().__init__()
        dim1, dim2, dim3 = dim, 2 * dim, 4 * dim
        scan = partial(selective_scan, backend=scan_backend)

        def encoder(width: int, depth: int) -> nn.Sequential:
            return nn.Sequential(*[EncoderBlock(width) for _ in range(depth)])

        def decoder(width: int, depth: int) -> nn.Sequential:
            return nn.Sequential(*[DecoderBlock(width, scan) for _ in range(depth)])

        self.patch_embed = PatchEmbed(dim1)
        self.encoder_level1, self.down1_2 = encoder(dim1, num_blocks[0]), Rescale(dim1, dim2, 0.5)
        self.encoder_level2, self.down2_3 = encoder(dim2, num_blocks[1]), Rescale(dim2, dim3, 0.5)
        self.encoder_level3 = encoder(dim3, num_blocks[2])
        self.decoder_level3, self.up3_2 = decoder(dim3, num_blocks[2]), Rescale(dim3, dim2, 2)
        self.clff_level2, self.reduce_chan_level2 = KLFF(dim2, dim1, dim3), conv1x1(2 * dim2, dim2)
        self.decoder_level2, self.up2_1 = decoder(dim2, num_blocks[1]), Rescale(dim2, dim1, 2)
        self.clff_level1, self.reduce_chan_level1 = KLFF(dim1, dim2, dim3), conv1x1(2 * dim1, dim1)
        self.decoder_level1 = decoder(dim1, num_blocks[0])
        self.output = conv3x3(dim1, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        level1 = self.encoder_level1(self.patch_embed(image))
        level2 = self.encoder_level2(self.down1_2(level1))
        level3 = self.encoder_level3(self.down2_3(level2))

        x = self.up3_2(self.decoder_level3(level3))
        fused = self.clff_level2(level2, resize(level1, 0.5), resize(level3, 2))
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat([x, fused], dim=1)))
        x = self.up2_1(x)
        fused = self.clff_level1(level1, resize(level2, 2), resize(resize(level3, 2), 2))
        x = self.decoder_level1(self.reduce_chan_level1(torch.cat([x, fused], dim=1)))
        return self.output(x) + image


def conv1x1(dim_in: int, dim_out: int) -> nn.Conv2d:
    return nn.Conv2d(dim_in, dim_out, 1, bias=False)


def conv3x3(dim_in: int, dim_out: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(dim_in, dim_out, 3, padding=1, groups=groups, bias=False)


def resize(x: torch.Tensor, factor: float) -> torch.Tensor:
    return F.interpolate(x, scale_factor=factor, mode="nearest")


class PatchEmbed(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.proj = conv3x3(3, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


class Rescale(nn.Module):
    """Bilinear resizing, then a 3x3 convolution."""

    def __init__(self, dim_in: int, dim_out: int, factor: float):
        super().__init__()
        self.body = nn.Sequential(nn.Upsample(scale_factor=factor, mode="bilinear"), conv3x3(dim_in, dim_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class ChannelNorm(nn.Module):
    """Layer normalisation over channels, with a copy to (B, H W, C) before it and a copy back after it."""

    def __init__(self, dim: int):
        super().__init__()
        self.body = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.body(rearrange(x, "b c h w -> b (h w) c").contiguous())
        return rearrange(rows, "b (h w) c -> b c h w", h=x.shape[2]).contiguous()


class GatedFFN(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.project_in, self.project_out = conv1x1(dim, 2 * dim), conv1x1(dim, dim)
        self.dwconv = conv3x3(2 * dim, 2 * dim, groups=2 * dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.silu(a) * b)


class EncoderBlock(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.norm1_ffn, self.norm2_ffn = ChannelNorm(dim), ChannelNorm(dim)
        self.ffn1, self.ffn2 = GatedFFN(dim), GatedFFN(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ffn1(self.norm1_ffn(x))
        return x + self.ffn2(self.norm2_ffn(x))


class DecoderBlock(nn.Module):
    def __init__(self, dim: int, scan: partial):
        super().__init__()
        self.norm1_ssm, self.norm2_ssm = ChannelNorm(dim), ChannelNorm(dim)
        self.intra, self.inter = IntraVSSM(dim, scan), InterVSSM(dim, scan)
        self.norm1_ffn, self.norm2_ffn = ChannelNorm(dim), ChannelNorm(dim)
        self.ffn1, self.ffn2 = GatedFFN(dim), GatedFFN(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.intra(self.norm1_ssm(x))
        x = x + self.ffn1(self.norm1_ffn(x))
        x = x + self.inter(self.norm2_ssm(x))
        return x + self.ffn2(self.norm2_ffn(x))


class VSSM(nn.Module):
    """(B, C, H, W) -> (B, C, H, W). Subclasses scan in ``branches``."""

    def __init__(self, dim: int, scan: partial):
        super().__init__()
        self.proj_in, self.proj_out = conv1x1(dim, 2 * dim), conv1x1(dim, dim)
        self.dwconv = conv3x3(2 * dim, 2 * dim, groups=2 * dim)
        self.conv_input, self.fuse_out = conv1x1(dim, dim), conv1x1(dim, dim)
        self.mamba = Mamba(dim // 2, scan)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features, gate = self.dwconv(self.proj_in(x)).chunk(2, dim=1)
        horizontal, vertical = self.conv_input(features).chunk(2, dim=1)
        core = self.fuse_out(torch.cat(self.branches(horizontal, vertical), dim=1))
        return self.proj_out(core * F.silu(gate))


class IntraVSSM(VSSM):
    """Scans every row, then every column, with a copy before and after each scan."""

    def branches(self, horizontal: torch.Tensor, vertical: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = horizontal.shape[2:]
        rows = self.mamba(rearrange(horizontal, "b c h w -> (b h) w c").contiguous())
        rows = rearrange(rows, "(b h) w c -> b c h w", h=height).contiguous()
        columns = self.mamba(rearrange(vertical, "b c h w -> (b w) h c").contiguous())
        return rows, rearrange(columns, "(b w) h c -> b c h w", w=width).contiguous()


class InterVSSM(VSSM):
    """Scans the means of the rows, then those of the columns; sigmoids of the results gate the features."""

    def branches(self, horizontal: torch.Tensor, vertical: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.mamba(rearrange(horizontal.mean(dim=3), "b c h -> b h c").contiguous())
        gate_rows = rearrange(rows, "b h c -> b c h 1").contiguous().sigmoid()
        columns = self.mamba(rearrange(vertical.mean(dim=2), "b c w -> b w c").contiguous())
        gate_columns = rearrange(columns, "b w c -> b c 1 w").contiguous().sigmoid()
        return horizontal * gate_rows, vertical * gate_columns


class Mamba(nn.Module):
    """(B, L, d_model) -> (B, L, d_model), in the order of mamba-ssm: https://github.com/state-spaces/mamba."""

    def __init__(self, d_model: int, scan: partial, d_state: int = 16, d_conv: int = 4):
        super().__init__()
        d_inner = 2 * d_model
        self.scan, self.sizes = scan, [math.ceil(d_model / 16), d_state, d_state]
        self.fused = fused_mamba() if scan.keywords["backend"] == "mamba_ssm" else None
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(d_inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(self.sizes[0], d_inner)
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1).float().log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        length = hidden.shape[1]
        xz = self.in_proj.weight @ rearrange(hidden, "b l d -> d (b l)")
        xz, A = rearrange(xz, "d (b l) -> b d l", l=length), -torch.exp(self.A_log)
        if self.fused:
            return self.fused(
                xz,
                self.conv1d.weight,
                self.conv1d.bias,
                self.x_proj.weight,
                self.dt_proj.weight,
                self.out_proj.weight,
                None,
                A,
                None,
                None,
                self.D,
                delta_bias=self.dt_proj.bias,
                delta_softplus=True,
            )
        x, z = xz.chunk(2, dim=1)
        x = F.silu(self.conv1d(x)[..., :length])
        dt, B, C = self.x_proj(rearrange(x, "b d l -> (b l) d")).split(self.sizes, dim=-1)
        dt = rearrange(self.dt_proj.weight @ dt.t(), "d (b l) -> b d l", l=length)  # its bias is added in the scan
        B, C = (rearrange(t, "(b l) n -> b n l", l=length).contiguous() for t in (B, C))
        y = self.scan(x, dt, A, B, C, self.D, z, self.dt_proj.bias, delta_softplus=True)
        return self.out_proj(rearrange(y, "b d l -> b l d"))


def fused_mamba() -> Callable | None:
    """mamba-ssm's block after in_proj, in one function; None if causal-conv1d cannot be imported."""
    try:
        importlib.import_module("causal_conv1d")
    except Exception:  # a wheel built for another torch or CUDA raises ImportError, OSError and others
        return None
    return importlib.import_module("mamba_ssm.ops.selective_scan_interface").mamba_inner_fn


class KLFF(nn.Module):
    """Fuses three feature maps of equal size, the current level's first, with the released gate: a scalar a batch."""

    def __init__(self, dim: int, dim1: int, dim2: int):
        super().__init__()
        self.conv, self.conv_n1, self.conv_n2 = conv1x1(dim, dim), conv1x1(dim1, dim), conv1x1(dim2, dim)
        self.fuse_out1 = conv1x1(2 * dim, dim)

    def forward(self, current: torch.Tensor, other1: torch.Tensor, other2: torch.Tensor) -> torch.Tensor:
        current, other1, other2 = self.conv(current), self.conv_n1(other1), self.conv_n2(other2)
        others = gate(current, other1) * other1 + gate(current, other2) * other2
        return self.fuse_out1(torch.cat([current, others], dim=1))


def gate(current: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Sigmoid of the mean of KL = p (log p - log q), where p and q are the sigmoids of current and other."""
    return (current.sigmoid() * (F.logsigmoid(current) - F.logsigmoid(other))).mean().sigmoid()
