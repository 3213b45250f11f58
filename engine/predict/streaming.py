"""Streaming: the network on a full image, computed band by band, at a fraction of the memory and to rounding the same.

Only what cannot be computed from a few rows is kept whole: each level's features, updated in place, and the columns'
scans. A band of rows is enough for convolutions (with a halo of neighbouring rows) and for the scans of rows, a band
of columns for the scans of columns; the means over rows, columns and images are summed up in a pass of their own.
Modules that are not known here, such as SS2D and AFF, run on whole maps. `streams_exactly` tells whether all of this
gives what the network gives.
Features are (B, C, H, W), channels last in memory; a part, (start, stop), is some rows (dim 2) or columns (dim 3).
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from models.fusion import KLFF
from models.ops.kl_divergence import kl_divergence
from models.vssm import InterVSSM, IntraVSSM
from models.xyscannet import MULTIPLE, XYScanNet, pad

BAND = 32  # rows or columns at a time, at every level
TOLERANCE = 1e-4  # of the residual's largest value, by which a streamed result may differ from the network's
PROBE = 48, 40  # the small image on which both are compared: several bands of 8 rows
Part = tuple[int, int]


@torch.inference_mode()
def stream(network: XYScanNet, images: torch.Tensor, band: int = BAND) -> torch.Tensor:
    """network(images) to rounding, with two and a half maps of `dim` channels kept besides a band's.

    Args:
        images: (B, 3, H, W) in [-0.5, 0.5].
        band: rows or columns of level 1 computed at a time, a multiple of 4; fewer take less memory and more time.
    Raises ValueError for a band that cannot be, and for images as the network does.
    """
    if band < MULTIPLE or band % MULTIPLE:
        raise ValueError(f"band must be a multiple of {MULTIPLE} rows and at least {MULTIPLE}, got {band}")
    image = F.pixel_unshuffle(pad(images, MULTIPLE * network.unshuffle), network.unshuffle)
    x = _decoder_input(network, image, band)
    _decode(network.decoder_level1, x, band)
    restored = _assemble(lambda rows: _cut(image, rows) + _seeing(network.output, x, rows), image.shape[2], band)
    restored = F.pixel_shuffle(restored, network.unshuffle)
    return restored[..., : images.shape[2], : images.shape[3]]


@torch.inference_mode()
def streams_exactly(network: XYScanNet) -> bool:
    """Whether `stream` gives what ``network`` gives, compared on a small random image.

    It does not where the network has been changed in a way that streaming does not know of.
    """
    weight = network.output.weight
    noise = torch.rand(1, 3, *PROBE, generator=torch.Generator().manual_seed(0)) - 0.5
    image = noise.to(weight.device, weight.dtype)
    try:
        expected, streamed = network(image), stream(network, image, band=8)
    except (AttributeError, RuntimeError, TypeError, ValueError):  # a module without the parts that are streamed
        return False
    largest = (expected - image).abs().max()
    return bool((expected - streamed).abs().max() <= TOLERANCE * largest)


def _decoder_input(network: XYScanNet, image: torch.Tensor, band: int) -> torch.Tensor:
    """All of the network before the decoder's level 1, whose input it returns."""
    height = image.shape[2]

    # Encoder.
    level1 = _assemble(lambda rows: _seeing(network.patch_embed, image, rows), height, band)
    _encode(network.encoder_level1, level1, band)
    level2 = _assemble(lambda rows: _seeing(network.down1_2, level1, rows, ratio=2), height // 2, band)
    _encode(network.encoder_level2, level2, band)
    level3 = _assemble(lambda rows: _seeing(network.down2_3, level2, rows, ratio=2), height // 4, band)
    _encode(network.encoder_level3, level3, band)

    # Decoder.
    x = level3.clone()
    _decode(network.decoder_level3, x, band)
    fused2 = _fusion(network.clff_level2, level2, (level1, level3), band)
    x = _assemble(
        lambda rows: network.reduce_chan_level2(
            torch.cat([_seeing(network.up3_2, x, rows, ratio=0.5), fused2(rows)], dim=1)
        ),
        height // 2,
        band,
    )
    _decode(network.decoder_level2, x, band)
    fused1 = _fusion(network.clff_level1, level1, (level2, level3), band)
    for rows in _parts(height, band):  # a pixel of level 1 is read for itself alone, so its place is free
        joined = torch.cat([_seeing(network.up2_1, x, rows, ratio=0.5), fused1(rows)], dim=1)
        _cut(level1, rows).copy_(network.reduce_chan_level1(joined))
    return level1


def _encode(blocks: nn.Sequential, x: torch.Tensor, band: int) -> None:
    """EncoderBlocks, in place."""
    for block in blocks:
        _feed_forward(block.norm1_ffn, block.ffn1, x, band)
        _feed_forward(block.norm2_ffn, block.ffn2, x, band)


def _decode(blocks: nn.Sequential, x: torch.Tensor, band: int) -> None:
    """DecoderBlocks, in place."""
    for block in blocks:
        _scanned(block.norm1_ssm, block.intra, x, band)
        _feed_forward(block.norm1_ffn, block.ffn1, x, band)
        _scanned(block.norm2_ssm, block.inter, x, band)
        _feed_forward(block.norm2_ffn, block.ffn2, x, band)


def _scanned(norm: nn.Module, module: nn.Module, x: torch.Tensor, band: int) -> None:
    """x + module(norm(x)), in place."""
    streamed = {IntraVSSM: _intra, InterVSSM: _inter}.get(type(module))
    if streamed:
        streamed(norm, module, x, band)
    else:
        x += module(norm(x))


def _feed_forward(norm: nn.Module, ffn: nn.Module, x: torch.Tensor, band: int) -> None:
    _replace(x, lambda rows: _seeing(lambda seen: seen + ffn(norm(seen)), x, rows), band)


def _intra(norm: nn.Module, vssm: IntraVSSM, x: torch.Tensor, band: int) -> None:
    """Intra-VSSM: columns by bands of columns, whose scans are kept; then all the rest by bands of rows."""

    def project(seen: torch.Tensor) -> torch.Tensor:
        return vssm.dwconv(vssm.proj_in(norm(seen)))

    def scan_columns(columns: Part) -> torch.Tensor:
        features, _ = _seeing(project, x, columns, dim=3).chunk(2, dim=1)
        _, F_v = vssm.conv_input(features).chunk(2, dim=1)
        return _scan(vssm, F_v, dim=2)

    def renewed(rows: Part) -> torch.Tensor:
        features, Y = _seeing(project, x, rows).chunk(2, dim=1)
        F_h, _ = vssm.conv_input(features).chunk(2, dim=1)
        scanned = vssm.fuse_out(torch.cat([_scan(vssm, F_h, dim=3), _cut(scanned_columns, rows)], dim=1))
        return _cut(x, rows) + vssm.proj_out(F.silu(Y) * scanned)

    scanned_columns = _assemble(scan_columns, x.shape[3], band, dim=3)
    _replace(x, renewed, band)


def _inter(norm: nn.Module, vssm: InterVSSM, x: torch.Tensor, band: int) -> None:
    """Inter-VSSM: first the means of rows and columns and their scans, then all by bands of rows once more."""

    def branches(rows: Part) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features, Y = _seeing(lambda seen: vssm.dwconv(vssm.proj_in(norm(seen))), x, rows).chunk(2, dim=1)
        return *vssm.conv_input(features).chunk(2, dim=1), Y

    def renewed(rows: Part) -> torch.Tensor:
        F_h, F_v, Y = branches(rows)
        scanned = vssm.fuse_out(torch.cat([_cut(gate_h, rows) * F_h, gate_v * F_v], dim=1))
        return _cut(x, rows) + vssm.proj_out(F.silu(Y) * scanned)

    means_h, mean_v = [], 0
    for rows in _parts(x.shape[2], band):
        F_h, F_v, _ = branches(rows)
        means_h.append(F_h.mean(dim=3, keepdim=True))
        mean_v = mean_v + _at_least_fp32(F_v).mean(dim=2, keepdim=True) * _share(rows, x)
    gate_h = _scan(vssm, torch.cat(means_h, dim=2), dim=2).sigmoid()
    gate_v = _scan(vssm, mean_v.to(F_v.dtype), dim=3).sigmoid()
    _replace(x, renewed, band)


def _scan(vssm: nn.Module, features: torch.Tensor, dim: int) -> torch.Tensor:
    """S6 along rows (dim 3) or columns (dim 2)."""
    if dim == 3:
        return rearrange(vssm.mamba(rearrange(features, "b c h w -> b h w c")), "b h w c -> b c h w")
    return rearrange(vssm.mamba(rearrange(features, "b c h w -> b w h c")), "b w h c -> b c h w")


def _fusion(
    fusion: nn.Module, current: torch.Tensor, others: tuple[torch.Tensor, torch.Tensor], band: int
) -> Callable[[Part], torch.Tensor]:
    """KLFF, or what stands in its place, as a function of rows."""
    if type(fusion) is KLFF:
        return _klff(fusion, current, others, band)
    whole = fusion(current, *others)
    return lambda rows: _cut(whole, rows)


def _klff(
    klff: KLFF, current: torch.Tensor, others: tuple[torch.Tensor, torch.Tensor], band: int
) -> Callable[[Part], torch.Tensor]:
    """KLFF as a function of rows; the divergences' means, where there are any, are taken beforehand."""

    def maps(rows: Part) -> tuple[torch.Tensor, ...]:
        return klff.align(
            _cut(current, rows), *(_cut(other, rows, other.shape[2] / current.shape[2]) for other in others)
        )

    def fused(rows: Part) -> torch.Tensor:
        now, other1, other2 = maps(rows)
        gate1, gate2 = gates or (klff.gate(now, other1), klff.gate(now, other2))
        return klff.fuse_out1(torch.cat([now, gate1 * other1 + gate2 * other2], dim=1))

    gates = None
    if klff.kl_gate != "elementwise":
        means, over = [0, 0], (1, 2, 3) if klff.kl_gate == "image" else (0, 1, 2, 3)
        for rows in _parts(current.shape[2], band):
            now, *resized = maps(rows)
            means = [
                mean + kl_divergence(now, other).mean(dim=over, keepdim=True) * _share(rows, current)
                for mean, other in zip(means, resized, strict=True)
            ]
        gates = [mean.sigmoid().to(now.dtype) for mean in means]
    return fused


def _at_least_fp32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _parts(size: int, band: int) -> Iterator[Part]:
    """(start, stop) of the bands of a side; the last one may be narrower."""
    return ((start, min(start + band, size)) for start in range(0, size, band))


def _share(rows: Part, x: torch.Tensor) -> float:
    """Of all rows, by which a band's mean counts in the whole's."""
    return (rows[1] - rows[0]) / x.shape[2]


def _cut(x: torch.Tensor, rows: Part, ratio: float = 1) -> torch.Tensor:
    """A view of the rows; `ratio`: x's rows to one of those that are counted."""
    start, stop = (int(row * ratio) for row in rows)
    return x[:, :, start:stop]


def _seeing(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, part: Part, dim: int = 2, ratio: float = 1
) -> torch.Tensor:
    """function(x) at `part`, of a function that looks one row or column of its result's around.

    It sees a halo around the part, whose result is cut off, so that it pads with zeros at x's own border alone.

    Args:
        ratio: x's rows to one of the result's.
    """
    (start, stop), halo = part, max(1, int(ratio))
    first, last = max(int(start * ratio) - halo, 0), min(int(stop * ratio) + halo, x.shape[dim])
    return function(x.narrow(dim, first, last - first)).narrow(dim, start - int(first / ratio), stop - start)


def _assemble(function: Callable[[Part], torch.Tensor], size: int, band: int, dim: int = 2) -> torch.Tensor:
    """What `function` makes of the parts of a side, side by side."""
    whole = None
    for start, stop in _parts(size, band):
        part = function((start, stop))
        if whole is None:
            shape = [*part.shape[:dim], size, *part.shape[dim + 1 :]]
            whole = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=torch.channels_last)
        whole.narrow(dim, start, stop - start).copy_(part)
    return whole


def _replace(x: torch.Tensor, function: Callable[[Part], torch.Tensor], band: int) -> None:
    """x = function(rows) for all its rows, in place, each band after its neighbour below has seen what it was."""
    late = None
    for rows in _parts(x.shape[2], band):
        now = rows, function(rows)
        if late:
            _cut(x, late[0]).copy_(late[1])
        late = now
    _cut(x, late[0]).copy_(late[1])
