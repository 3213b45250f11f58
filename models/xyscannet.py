"""XYScanNet: a three-level U-Net with slice-and-scan modules in its decoder (paper, Section 3; Figure 3)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import Conv1x1, Conv3x3, DecoderBlock, EncoderBlock, Level, PatchEmbed, Rescale
from .registry import FUSIONS, STATE_SPACES, Options

XYSCAN = "xyscan"  # the network's own pair, Intra- and Inter-VSSM
SCANS = ("unidirectional", "bidirectional")
SLICES = ("intra_inter", "intra", "inter")
GRID = 4  # two halvings: height and width at level 1 are multiples of it
MIN_SIZE = 8


class XYScanNet(nn.Module):
    """(B, 3, H, W) blurred images in [-0.5, 0.5] -> the restored images, same shape and range (not clamped).

    Args:
        dim: channels at level 1; 2 dim and 4 dim at the two levels below. A multiple of 2.
        num_blocks: blocks at levels 1, 2, 3, in both encoder and decoder; 0 for none.
        kl_gate: over what KLFF averages the divergence: elementwise | image | batch, see ``fusion.KLFF``.
        scan_backend: see ``selective_scan``.
        checkpoint_activations: keep only each block's input for the backward pass and recompute the rest: less memory,
            more time, the same results.
        vssm: the decoder's state space modules: xyscan | ss2d (Table 5) | a name in ``registry.STATE_SPACES``.
        scan: unidirectional | bidirectional (Table 6); only for xyscan.
        slices: which modules a decoder block has: intra_inter | intra, twice | inter, twice (Table 7); only for xyscan.
        fusion: between the levels: klff | aff | none (Table 8) | a name in ``registry.FUSIONS``.
        unshuffle: 2 computes at half resolution, with squares of 2 x 2 pixels as twelve channels (sub-pixel
            convolution: Shi et al. 2016, https://arxiv.org/abs/1609.05158): a quarter of the positions, twice the
            receptive field.
    Raises:
        ValueError: a value out of range or unknown, or values that do not go together.
    """

    def __init__(
        self,
        dim: int = 48,
        num_blocks: Sequence[int] = (3, 3, 6),
        kl_gate: str = "image",
        scan_backend: str = "auto",
        checkpoint_activations: bool = False,
        vssm: str = "xyscan",
        scan: str = "unidirectional",
        slices: str = "intra_inter",
        fusion: str = "klff",
        unshuffle: int = 1,
    ):
        super().__init__()
        _check(dim, num_blocks, fusion, unshuffle)
        modules = [STATE_SPACES[name] for name in decoder_modules(vssm, scan, slices)]
        Fusion, options = FUSIONS[fusion], Options(kl_gate, scan, scan_backend)
        self.dim, self.num_blocks, self.kl_gate, self.unshuffle = dim, tuple(num_blocks), kl_gate, unshuffle
        self.vssm, self.scan, self.slices, self.fusion = vssm, scan, slices, fusion
        dim1, dim2, dim3, channels = dim, 2 * dim, 4 * dim, 3 * unshuffle**2

        # Embedding.
        self.patch_embed = PatchEmbed(channels, dim1)

        # Encoder.
        self.encoder_level1 = encoder(dim1, num_blocks[0], checkpoint_activations)
        self.down1_2 = Rescale(dim1, dim2, 0.5)
        self.encoder_level2 = encoder(dim2, num_blocks[1], checkpoint_activations)
        self.down2_3 = Rescale(dim2, dim3, 0.5)
        self.encoder_level3 = encoder(dim3, num_blocks[2], checkpoint_activations)

        # Decoder, with cross-level feature fusion where the encoder's features join.
        self.decoder_level3 = decoder(dim3, num_blocks[2], modules, options, checkpoint_activations)
        self.up3_2 = Rescale(dim3, dim2, 2)
        self.clff_level2 = Fusion(dim2, (dim1, dim3), options)
        self.reduce_chan_level2 = Conv1x1(2 * dim2, dim2)
        self.decoder_level2 = decoder(dim2, num_blocks[1], modules, options, checkpoint_activations)
        self.up2_1 = Rescale(dim2, dim1, 2)
        self.clff_level1 = Fusion(dim1, (dim2, dim3), options)
        self.reduce_chan_level1 = Conv1x1(2 * dim1, dim1)
        self.decoder_level1 = decoder(dim1, num_blocks[0], modules, options, checkpoint_activations)
        self.output = Conv3x3(dim1, channels)

    @property
    def description(self) -> dict[str, Any]:
        """The arguments that rebuild this network; saved with its weights, see `weights.described_state`."""
        names = "dim", "num_blocks", "kl_gate", "vssm", "scan", "slices", "fusion", "unshuffle"
        return {name: getattr(self, name) for name in names} | {"num_blocks": list(self.num_blocks)}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = pad(image, GRID * self.unshuffle)
        height, width = image.shape[-2:]
        return (x + self.residual(x))[..., :height, :width]

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 3, H, W); H and W are multiples of 4, or of 8 for unshuffle 2."""
        x = F.pixel_unshuffle(x, self.unshuffle)
        # Channels last in memory: norms, 1x1 convolutions and scans read contiguous channels.
        x = self.patch_embed(x.contiguous(memory_format=torch.channels_last))

        # Encoder.
        level1 = self.encoder_level1(x)
        level2 = self.encoder_level2(self.down1_2(level1))
        level3 = self.encoder_level3(self.down2_3(level2))

        # Decoder.
        x = self.decoder_level3(level3)
        x = torch.cat([self.up3_2(x), self.clff_level2(level2, level1, level3)], dim=1)
        x = self.decoder_level2(self.reduce_chan_level2(x))
        x = torch.cat([self.up2_1(x), self.clff_level1(level1, level2, level3)], dim=1)
        del level1, level2, level3  # free these and the cat: memory peaks in the last decoder
        x = self.reduce_chan_level1(x)
        x = self.decoder_level1(x)
        return F.pixel_shuffle(self.output(x), self.unshuffle)


def encoder(width: int, depth: int, checkpoint_activations: bool) -> Level:
    return Level([EncoderBlock(width) for _ in range(depth)], checkpoint_activations)


def decoder(width: int, depth: int, modules: list, options: Options, checkpoint_activations: bool) -> Level:
    blocks = [DecoderBlock(width, *(module(width, options) for module in modules)) for _ in range(depth)]
    return Level(blocks, checkpoint_activations)


def _check(dim: int, num_blocks: Sequence[int], fusion: str, unshuffle: int) -> None:
    if dim < 2 or dim % 2 or len(num_blocks) != 3 or min(num_blocks) < 0 or not any(num_blocks):
        raise ValueError(f"dim must be even, num_blocks three numbers from 0, not all 0; got {dim=}, {num_blocks=}")
    if unshuffle not in (1, 2):
        raise ValueError(f"unshuffle must be 1 or 2, got {unshuffle}")
    if fusion not in FUSIONS:
        raise ValueError(f"fusion {fusion!r} is unknown; choose one of {', '.join(FUSIONS)}")


def decoder_modules(vssm: str = XYSCAN, scan: str = SCANS[0], slices: str = SLICES[0]) -> tuple[str, str]:
    """The names of a decoder block's two state space modules; ValueError for unknown or incompatible ones."""
    for name, value, known in (
        ("vssm", vssm, (XYSCAN, *STATE_SPACES)),
        ("scan", scan, SCANS),
        ("slices", slices, SLICES),
    ):
        if value not in known:
            raise ValueError(f"{name} {value!r} is unknown; choose one of {', '.join(known)}")
    if vssm == XYSCAN:
        return ("intra", "inter") if slices == "intra_inter" else (slices, slices)
    if vssm == "ss2d" and scan != SCANS[0] or slices != SLICES[0]:
        raise ValueError(f"vssm {vssm} has scans of its own and no slices: leave out {scan=}, {slices=}")
    return vssm, vssm


def pad(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad (B, 3, H, W) at the bottom and right by reflection, to multiples of ``multiple``.

    Raises:
        ValueError: another shape, or a side below 8 pixels.
    """
    if image.dim() != 4 or image.shape[1] != 3 or min(image.shape[-2:]) < MIN_SIZE:
        raise ValueError(f"images must be (B, 3, H, W) with H, W >= {MIN_SIZE}, got {tuple(image.shape)}")
    below, right = (-side % multiple for side in image.shape[-2:])
    return F.pad(image, (0, right, 0, below), mode="reflect") if below or right else image  # without a copy


def xyscannet_t(**options) -> XYScanNet:
    """XYScanNet-T, 1.27 M parameters, at half resolution: not in the paper; this repository contains its weights."""
    return XYScanNet(dim=32, num_blocks=(1, 1, 2), unshuffle=2, **options)


def xyscannet_s(**options) -> XYScanNet:
    """XYScanNet-S, 7.30 M parameters: the paper's ablations (Tables 5 to 8)."""
    return XYScanNet(dim=48, **options)


def xyscannet(**options) -> XYScanNet:
    """The released mid size, 16.2 M parameters."""
    return XYScanNet(dim=72, **options)


def xyscannetp(**options) -> XYScanNet:
    """XYScanNet-P, 63.5 M parameters: the released GoPro and RealBlur checkpoints (Tables 1 to 4)."""
    return XYScanNet(dim=144, **options)
