"""Streaming: run the network on a full image band by band, the same result to rounding in a fraction of the memory.

A band is up to 32 consecutive rows (or columns) of a level's features. The wide maps inside a block, which make up most
of the network's memory, exist for one band at a time. Kept for the full image:

    the features of each level, updated in place. Convolutions read one row beyond the band on either side, the halo.
    Intra-VSSM    both branches, from a first pass; they are scanned in place, and a second pass does the rest
    Inter-VSSM    the same, but they are averaged, and multiplied by the gates
    KLFF          the gates, one for each image, from a first pass that averages the divergences

Modules of other classes, such as SS2D, AFF and a researcher's own, run on full maps.

On a CPU with a C compiler, in fp32, feed-forward networks, S6 (in one direction, with the scan backend auto or cpu) and
the projections around the scans run in C (`ops.fused`, `ops.s6`). Each part is compared with its PyTorch code on random
pixels, and stays in PyTorch where the two differ.

This file repeats what the classes named above compute. `streams_exactly` therefore compares it with the network itself
on a small image when weights are loaded; a network that was edited and does not agree is not streamed.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import nn

from .fusion import KLFF, resize
from .ops.fused import HiddenWeights, branches, feed_forward, gated_projection, runs_in_c
from .ops.kl_divergence import kl_divergence
from .ops.s6 import s6
from .ops.silu_gate import silu_gate
from .ops.tf32 import without_tf32
from .vssm import VSSM, InterVSSM, IntraVSSM
from .xyscannet import GRID, XYScanNet, pad

logger = logging.getLogger(__name__)

BAND = 32  # rows or columns, at every level
PROBE = 48, 40  # height and width of the image that `streams_exactly` compares, several bands of 8 rows
TOLERANCE = 1e-4  # of the largest residual, by which the two may differ

# Called with the work of each part of a feature map that is done: its pixels times the square of its channels.
listeners: list[Callable[[int], None]] = []

# Features x are (B, C, H, W), channels last in memory. A band is a range of rows; columns are the rows of x.mT.
Band = range


@torch.inference_mode()
def stream(network: XYScanNet, images: torch.Tensor, band: int = BAND) -> torch.Tensor:
    """Compute ``network(images)``, to rounding, holding about 2.7 full-size maps of ``dim`` channels, and a band's.

    Args:
        network: in evaluation mode.
        images: (B, 3, H, W) in [-0.5, 0.5].
        band: rows or columns computed at a time, a multiple of 4; fewer take less memory and more time.

    Returns:
        The restored images, same shape and range (not clamped).

    Raises:
        ValueError: for an impossible band, and for images as the network does.
    """
    if band < GRID or band % GRID:
        raise ValueError(f"band must be a multiple of {GRID} rows and at least {GRID}, got {band}")
    n = network.unshuffle
    image = pad(images, GRID * n)

    # Encoder.
    level1 = _map(lambda x: network.patch_embed(F.pixel_unshuffle(x, n)), image, band, ratio=n)
    _encode(network.encoder_level1, level1, band)
    level2 = _map(network.down1_2, level1, band, ratio=2)
    _encode(network.encoder_level2, level2, band)
    level3 = _map(network.down2_3, level2, band, ratio=2)
    _encode(network.encoder_level3, level3, band)

    # Decoder. A level's result takes the memory of its encoder's features: of these, fusion reads the rows of its band
    # alone, before they are replaced.
    fused2 = _fusion(network.clff_level2, level2, (level1, level3), band)
    fused1 = _fusion(network.clff_level1, level1, (level2, level3), band)
    _decode(network.decoder_level3, level3, band)
    x = _join(network.up3_2, network.reduce_chan_level2, level3, fused2, level2, band)
    del level3, fused2
    _decode(network.decoder_level2, x, band)
    x = _join(network.up2_1, network.reduce_chan_level1, x, fused1, level1, band)
    del level1, level2, fused1
    _decode(network.decoder_level1, x, band)

    def restored(rows: Band) -> torch.Tensor:
        residual = _with_halo(network.output, x, range(rows.start // n, rows.stop // n))
        return _rows(image, rows) + F.pixel_shuffle(residual, n)

    return _assemble(restored, image.shape[2], n * band)[..., : images.shape[2], : images.shape[3]]


def streams_exactly(network: XYScanNet) -> bool:
    """Whether `stream` and the network agree, to rounding, on a small random image.

    They do not where a class was edited, or patched at run time, in a way that this file does not follow.
    """
    with without_tf32():  # which rounds more coarsely than the tolerance, and for some shapes only
        return agrees(network, partial(stream, network, band=8), TOLERANCE)


@torch.inference_mode()
def agrees(
    network: XYScanNet, other: Callable[[torch.Tensor], torch.Tensor], tolerance: float, size: tuple[int, int] = PROBE
) -> bool:
    """Whether ``other`` computes what the network does on a small random image; False if it cannot run.

    Args:
        tolerance: the largest difference, as a share of the largest residual.
        size: height and width of the image.
    """
    weight = next(network.parameters())
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0), device="cpu") - 0.5
    image = image.to(weight.device, weight.dtype)
    try:
        expected, found = network(image), other(image)
    except Exception as error:  # of a module without the parts that are expected, or of a kernel that cannot run
        if _is_out_of_memory(error):
            raise
        logger.info("%s: %s", type(error).__name__, error)
        return False
    return bool((expected - found).abs().max() <= tolerance * (expected - image).abs().max())


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "allocate memory" in str(error)


# The U-Net's parts, named as in XYScanNet.


def _encode(blocks: nn.Sequential, x: torch.Tensor, band: int) -> None:
    """EncoderBlocks, in place."""
    for block in blocks:
        _feed_forward(block.norm1_ffn, block.ffn1, x, band)
        _feed_forward(block.norm2_ffn, block.ffn2, x, band)


def _decode(blocks: nn.Sequential, x: torch.Tensor, band: int) -> None:
    """DecoderBlocks, in place."""
    for block in blocks:
        _scan(block.norm1_ssm, block.intra, x, band)
        _feed_forward(block.norm1_ffn, block.ffn1, x, band)
        _scan(block.norm2_ssm, block.inter, x, band)
        _feed_forward(block.norm2_ffn, block.ffn2, x, band)


def _join(
    up: nn.Module,
    reduce_chan: nn.Module,
    below: torch.Tensor,
    fused: Callable[[Band], torch.Tensor],
    out: torch.Tensor,
    band: int,
) -> torch.Tensor:
    """Write reduce_chan([up(below), fused]), the input of a decoder level, to ``out`` and return it."""
    for rows in _bands(out.shape[2], band):
        joined = torch.cat([_with_halo(up, below, rows, ratio=0.5), fused(rows)], dim=1)
        _rows(out, rows).copy_(reduce_chan(joined))
        report(joined)
    return out


def _feed_forward(norm: nn.Module, ffn: nn.Module, x: torch.Tensor, band: int) -> None:
    """x = x + ffn(norm(x)), in place."""

    def in_c(x: torch.Tensor) -> torch.Tensor:
        return feed_forward(x, _hidden(norm, ffn.project_in, ffn.dwconv), ffn.project_out.weight)

    def plain(x: torch.Tensor) -> torch.Tensor:
        return x + ffn(norm(x))

    if _agrees_in_c((ffn, norm), x, in_c, plain, residual=True):
        in_c(x)
        report(x)
    else:
        _update(x, lambda rows: _with_halo(plain, x, rows), band)


def _scan(norm: nn.Module, module: nn.Module, x: torch.Tensor, band: int) -> None:
    """x = x + module(norm(x)), in place, of a state space module."""
    if type(module) not in (IntraVSSM, InterVSSM):
        x += module(norm(x))
        return
    around = _around_scans(norm, module, x, band)
    scanned = around.before(x)
    F_h, F_v = scanned.chunk(2, dim=1)
    if type(module) is IntraVSSM:
        _scan_rows(module, F_h, band)
        _scan_columns(module, F_v, band)
    else:
        # PyTorch averages ten times as fast if channels come last in the result.
        gate_h = rearrange(reduce(F_h, "b c h w -> b h c", "mean"), "b h c -> b c h 1")
        gate_v = rearrange(reduce(F_v, "b c h w -> b w c", "mean"), "b w c -> b c 1 w")
        _scan_columns(module, gate_h, band)
        _scan_rows(module, gate_v, band)
        F_h *= gate_h.sigmoid()
        F_v *= gate_v.sigmoid()
    around.after(x, scanned)


class _AroundScans:
    """What a state space module does before and after its scans (Eq. 5), in PyTorch's operations."""

    def __init__(self, norm: nn.Module, vssm: VSSM, band: int):
        self.norm, self.vssm, self.band = norm, vssm, band
        dim = vssm.conv_input.in_channels
        self.F, self.Y = slice(dim), slice(dim, None)  # in the channels of W_d W_p norm(x)

    def before(self, x: torch.Tensor) -> torch.Tensor:
        """Both branches, conv_input(F)."""
        return _map(lambda x: self.vssm.conv_input(self._part(x, self.F)), x, self.band)

    def after(self, x: torch.Tensor, scanned: torch.Tensor) -> None:
        """x = x + the module's output, in place."""

        def updated(rows: Band) -> torch.Tensor:
            Y = _with_halo(lambda x: self._part(x, self.Y), x, rows)
            return _rows(x, rows) + self.vssm.proj_out(silu_gate(self.vssm.fuse_out(_rows(scanned, rows)), Y))

        _update(x, updated, self.band)

    def _part(self, x: torch.Tensor, channels: slice) -> torch.Tensor:
        return _outputs(self.vssm.dwconv, _outputs(self.vssm.proj_in, self.norm(x), channels), channels)


class _AroundScansInC(_AroundScans):
    """The same in C."""

    def before(self, x):
        result = branches(x, self._hidden(self.F), self.vssm.conv_input.weight)
        report(result)
        return result

    def after(self, x, scanned):
        gated_projection(x, scanned, self._hidden(self.Y), self.vssm.fuse_out.weight, self.vssm.proj_out.weight)
        report(x)

    def _hidden(self, channels: slice) -> HiddenWeights:
        return _hidden(self.norm, self.vssm.proj_in, self.vssm.dwconv, channels)


def _around_scans(norm: nn.Module, vssm: VSSM, x: torch.Tensor, band: int) -> _AroundScans:
    """In C where that computes the same."""

    def without_scans(around: _AroundScans, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        around.after(x, around.before(x))
        return x

    in_c, plain = _AroundScansInC(norm, vssm, band), _AroundScans(norm, vssm, band)
    parts = vssm.proj_in, vssm.dwconv, vssm.conv_input, vssm.fuse_out, vssm.proj_out, norm
    same = _agrees_in_c(parts, x, partial(without_scans, in_c), partial(without_scans, plain), residual=True)
    return in_c if same else plain


def _outputs(conv: nn.Conv2d, x: torch.Tensor, channels: slice) -> torch.Tensor:
    """Some of a convolution's output channels; if it is depth-wise, x has these channels alone."""
    weight, bias = conv.weight[channels], None if conv.bias is None else conv.bias[channels]
    return F.conv2d(x, weight, bias, padding=conv.padding, groups=len(weight) if conv.groups > 1 else 1)


def _scan_rows(vssm: VSSM, features: torch.Tensor, band: int) -> None:
    """S6 along the rows, in place."""
    mamba = vssm.mamba

    def in_c(features: torch.Tensor) -> torch.Tensor:
        x = rearrange(features, "b c h w -> b h w c")
        x.copy_(s6(x, mamba.state_dict(), overwrite_x=True))  # itself, where channels are adjacent
        return features

    def plain(features: torch.Tensor) -> torch.Tensor:
        return rearrange(mamba(rearrange(features, "b c h w -> b h w c")), "b h w c -> b c h w")

    wanted = getattr(mamba, "scan_backend", None) in ("auto", "cpu") and not mamba.bidirectional
    if wanted and _agrees_in_c([mamba], features, in_c, plain, residual=False):
        in_c(features)
        report(features)
        return
    for rows in _bands(features.shape[2], band):
        part = _rows(features, rows)
        part.copy_(plain(part))
        report(part)


def _scan_columns(vssm: VSSM, features: torch.Tensor, band: int) -> None:
    _scan_rows(vssm, features.mT, band)


def _fusion(
    module: nn.Module, current: torch.Tensor, others: tuple[torch.Tensor, torch.Tensor], band: int
) -> Callable[[Band], torch.Tensor]:
    """Cross-level feature fusion as a function of rows. It reads only the current level and the finer ones.

    KLFF's gates, where they average, are computed first.
    """
    if type(module) is not KLFF:
        full = module(current, *others)
        return lambda rows: _rows(full, rows)

    # A lower level is convolved at once, to at most half its channels: only the result is kept, and read afterwards.
    parts = [
        (nn.Identity(), conv(other)) if other.shape[2] < current.shape[2] else (conv, other)
        for conv, other in zip((module.conv_n1, module.conv_n2), others, strict=True)
    ]

    def align(rows: Band) -> tuple[torch.Tensor, ...]:
        size = torch.Size((len(rows), current.shape[3]))
        resized = (resize(conv, _rows(other, rows, other.shape[2] / current.shape[2]), size) for conv, other in parts)
        return module.conv(_rows(current, rows)), *resized

    def fused(rows: Band) -> torch.Tensor:
        now, other1, other2 = align(rows)
        gate1, gate2 = gates or (module.gate(now, other1), module.gate(now, other2))
        return module.fuse_out1(torch.cat([now, gate1 * other1 + gate2 * other2], dim=1))

    gates = None
    if module.kl_gate != "elementwise":
        means = [current.new_zeros(()), current.new_zeros(())]
        over = (1, 2, 3) if module.kl_gate == "image" else (0, 1, 2, 3)
        for rows in _bands(current.shape[2], band):
            now, *resized = align(rows)
            means = [
                mean + kl_divergence(now, other).mean(dim=over, keepdim=True) * (len(rows) / current.shape[2])
                for mean, other in zip(means, resized, strict=True)
            ]
        gates = [mean.sigmoid().to(now.dtype) for mean in means]
    return fused


# Which modules run in C.


def _hidden(norm: nn.Module, project_in: nn.Conv2d, dwconv: nn.Conv2d, channels: slice = slice(None)) -> HiddenWeights:
    weights = project_in.weight[channels], dwconv.weight[channels]
    return HiddenWeights(norm.body.weight, norm.body.bias, norm.body.eps, *weights)


_compared: WeakKeyDictionary[nn.Module, tuple[tuple, bool]] = WeakKeyDictionary()


def _agrees_in_c(
    parts: Sequence[nn.Module],
    x: torch.Tensor,
    in_c: Callable[[torch.Tensor], torch.Tensor],
    plain: Callable[[torch.Tensor], torch.Tensor],
    residual: bool,
) -> bool:
    """Whether C can run modules on features like x, (B, C, H, W) -> the same shape, and computes what they do.

    They may have been edited: both are compared on random pixels, again whenever another forward method is found.

    Args:
        residual: whether x is added to the output, so that only the difference from x tells.
    """
    modules = [module for part in parts for module in part.modules()]
    if not runs_in_c(x) or hooked(modules):
        return False
    code = tuple(getattr(module.forward, "__func__", module.forward) for module in modules)
    before, same = _compared.get(parts[0], (None, False))
    if code != before:
        same = False
        pixels = torch.randn(
            1, 5, 40, x.shape[1], generator=torch.Generator().manual_seed(0), dtype=x.dtype, device="cpu"
        )
        pixels = pixels.movedim(-1, 1)
        try:
            expected, found = plain(pixels), in_c(pixels.clone())
            scale = (expected - pixels if residual else expected).abs().max()
            if not scale:  # of zero weights, which tell nothing yet
                return False
            same = bool((expected - found).abs().max() <= TOLERANCE * scale)
        except Exception as error:  # whatever an edited module does
            if _is_out_of_memory(error):
                raise
            logger.debug("%s stays in PyTorch: %s", type(parts[0]).__name__, error)
        _compared[parts[0]] = code, same
    return same


# Bands.


def _bands(size: int, band: int) -> Iterator[Band]:
    """The bands of a side of ``size``; the last one may be narrower."""
    return (range(start, min(start + band, size)) for start in range(0, size, band))


def _rows(x: torch.Tensor, rows: Band, ratio: float = 1) -> torch.Tensor:
    """A view of x at ``rows``, which are counted at a level with 1 / ratio times the rows of x."""
    return x[:, :, int(rows.start * ratio) : int(rows.stop * ratio)]


def hooked(modules: Iterable[nn.Module]) -> bool:
    """Whether any has a forward hook, which only the module's own call runs."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def report(done: torch.Tensor) -> None:
    """Tell the listeners that this part of a feature map is done."""
    for listener in listeners:
        listener(done.numel() * done.shape[1])


def _with_halo(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, band: Band, ratio: float = 1
) -> torch.Tensor:
    """function(x) restricted to a band; the function may contain at most one 3x3 convolution.

    It runs on the band and a halo, whose result is cut off: its zero padding counts at the border of x alone.

    Args:
        ratio: rows of x to one row of the result, which are what ``band`` counts.
    """
    halo = max(1, int(ratio))
    first = max(int(band.start * ratio) - halo, 0)
    last = min(int(band.stop * ratio) + halo, x.shape[2])
    return function(x.narrow(2, first, last - first)).narrow(2, band.start - int(first / ratio), len(band))


def _map(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, band: int, ratio: int = 1) -> torch.Tensor:
    """function(x), as in `_with_halo`."""
    return _assemble(lambda rows: _with_halo(function, x, rows, ratio=ratio), x.shape[2] // ratio, band)


def _assemble(function: Callable[[Band], torch.Tensor], size: int, band: int) -> torch.Tensor:
    """Concatenate the function's results for all bands of a side, without a second copy of them."""
    full = None
    for part in _bands(size, band):
        result = function(part)
        if full is None:
            shape = [*result.shape[:2], size, result.shape[3]]
            full = torch.empty(shape, dtype=result.dtype, device=result.device, memory_format=torch.channels_last)
        _rows(full, part).copy_(result)
        report(result)
    return full


def _update(x: torch.Tensor, function: Callable[[Band], torch.Tensor], band: int) -> None:
    """x = function(rows) for all rows, in place; a band is written after the next one has read its old rows."""
    waiting: list[tuple[Band, torch.Tensor]] = []
    for rows in _bands(x.shape[2], band):
        waiting.append((rows, function(rows)))
        report(waiting[-1][1])
        if len(waiting) > 1:
            before, result = waiting.pop(0)
            _rows(x, before).copy_(result)
    for before, result in waiting:
        _rows(x, before).copy_(result)
