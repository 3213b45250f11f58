"""XYScanNet: a three-level U-Net with slice-and-scan modules in its decoder (paper, Section 3; Figure 3)."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import DecoderBlock, EncoderBlock, Level, PatchEmbed, Rescale
from .convolution import PointwiseConv
from .variants import check_variant, fusion_module, state_space_modules

MULTIPLE = 4    # two halvings: height and width at level 1 are multiples of it
MIN_SIZE = 8


class XYScanNet(nn.Module):
    """(B, 3, H, W) blurred images in [-0.5, 0.5] -> the restored images, same shape and range (not clamped).

    Args:
        dim: channels at level 1; 2 dim and 4 dim at the two levels below. A multiple of 2.
        num_blocks: blocks at levels 1, 2, 3, in the encoder and in the decoder alike.
        kl_gate: how KLFF averages the divergence, see ``fusion.KLFF``: elementwise | image | batch.
        scan_backend: what computes the scans, see ``selective_scan``.
        checkpoint_activations: whether training keeps only each block's input and computes the rest again for the
            backward pass: less memory for more time, the same numbers.
        vssm: the decoder's state space modules: xyscan | ss2d (Table 5).
        scan: unidirectional | bidirectional (Table 6); slices: intra_inter | intra | inter, which module stands in
            both places of a decoder block (Table 7). Both are for xyscan.
        fusion: of the encoder's levels: klff | aff | none (Table 8).
        unshuffle: 2 works at half the size throughout, on squares of 2 x 2 pixels as twelve channels (sub-pixel
            convolution: Shi et al. 2016, https://arxiv.org/abs/1609.05158): a quarter of the positions, and twice the
            reach.
    """

    def __init__(self, dim: int = 48, num_blocks: Sequence[int] = (3, 3, 6), kl_gate: str = "image",
                 scan_backend: str = "auto", checkpoint_activations: bool = False, vssm: str = "xyscan",
                 scan: str = "unidirectional", slices: str = "intra_inter", fusion: str = "klff",
                 unshuffle: int = 1):
        super().__init__()
        if dim < 2 or dim % 2 or len(num_blocks) != 3 or min(num_blocks) < 1:
            raise ValueError(f"dim must be even and num_blocks three positive numbers, got dim={dim}, {num_blocks=}")
        if unshuffle not in (1, 2):
            raise ValueError(f"unshuffle must be 1 or 2, got {unshuffle}")
        check_variant(vssm=vssm, scan=scan, slices=slices, fusion=fusion)
        self.dim, self.num_blocks, self.kl_gate, self.unshuffle = dim, tuple(num_blocks), kl_gate, unshuffle
        self.vssm, self.scan, self.slices, self.fusion = vssm, scan, slices, fusion
        dim1, dim2, dim3 = dim, 2 * dim, 4 * dim

        def encoder(width: int, depth: int) -> Level:
            return Level([EncoderBlock(width) for _ in range(depth)], checkpoint_activations)

        def decoder(width: int, depth: int) -> Level:
            return Level([DecoderBlock(width, *state_space_modules(width, vssm, scan, slices, scan_backend))
                          for _ in range(depth)], checkpoint_activations)

        # Embedding.
        channels = 3 * unshuffle**2
        self.patch_embed = PatchEmbed(channels, dim1)

        # Encoder.
        self.encoder_level1 = encoder(dim1, num_blocks[0])
        self.down1_2 = Rescale(dim1, dim2, 0.5)
        self.encoder_level2 = encoder(dim2, num_blocks[1])
        self.down2_3 = Rescale(dim2, dim3, 0.5)
        self.encoder_level3 = encoder(dim3, num_blocks[2])

        # Decoder, with cross-level feature fusion where the encoder's features join.
        self.decoder_level3 = decoder(dim3, num_blocks[2])
        self.up3_2 = Rescale(dim3, dim2, 2)
        self.clff_level2 = fusion_module(dim2, (dim1, dim3), fusion, kl_gate)
        self.reduce_chan_level2 = PointwiseConv(2 * dim2, dim2)
        self.decoder_level2 = decoder(dim2, num_blocks[1])
        self.up2_1 = Rescale(dim2, dim1, 2)
        self.clff_level1 = fusion_module(dim1, (dim2, dim3), fusion, kl_gate)
        self.reduce_chan_level1 = PointwiseConv(2 * dim1, dim1)
        self.decoder_level1 = decoder(dim1, num_blocks[0])
        self.output = nn.Conv2d(dim1, channels, 3, padding=1, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = pad(image, MULTIPLE * self.unshuffle)
        height, width = image.shape[-2:]
        return (x + self.residual(x))[..., :height, :width]

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """What is to be added to the blurred image; sides are multiples of 4, or of 8 for unshuffle 2."""
        x = F.pixel_unshuffle(x, self.unshuffle)
        # Channels last in memory: norms and 1x1 convolutions run over contiguous channels, and rows are slices.
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
        del level1, level2, level3      # the last decoder is where the memory peaks
        x = self.decoder_level1(self.reduce_chan_level1(x))
        return F.pixel_shuffle(self.output(x), self.unshuffle)


def pad(image: torch.Tensor, multiple: int = MULTIPLE) -> torch.Tensor:
    """(B, 3, H, W) reflected below and to the right to multiples of ``multiple``; ValueError as it says."""
    if image.dim() != 4 or image.shape[1] != 3 or min(image.shape[-2:]) < MIN_SIZE:
        raise ValueError(f"images must be (B, 3, H, W) with H, W >= {MIN_SIZE}, got {tuple(image.shape)}")
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % multiple, 0, -height % multiple), mode="reflect")


def xyscannet_t(**options) -> XYScanNet:
    """XYScanNet-T, 1.27 M parameters, at half the size inside: none of the paper's, but its weights come with this
    repository."""
    return XYScanNet(dim=32, num_blocks=(1, 1, 2), unshuffle=2, **options)


def xyscannet_s(**options) -> XYScanNet:
    """XYScanNet-S, 7.30 M parameters: the paper's ablations (Tables 5 to 8)."""
    return XYScanNet(dim=48, **options)


def xyscannet(**options) -> XYScanNet:
    """The released mid size, 16.2 M parameters."""
    return XYScanNet(dim=72, **options)


def xyscannetp(**options) -> XYScanNet:
    """XYScanNetP, 63.5 M parameters: the released GoPro and RealBlur checkpoints (Tables 1 to 4)."""
    return XYScanNet(dim=144, **options)
