"""The network with its blocks in fewer passes over memory, for inference on a GPU: the same result to rounding.

A block computes x + f(norm(x)) two or four times. Here the norm, the 1x1 convolutions, the gate of Eq. 5 and the sum
are two or three kernels (ops/fused_triton.py). Depth-wise convolutions and scans are as in the network; modules of
other classes run unchanged, and so do blocks with hooks.

This file repeats what the classes of FOLLOWED compute. Where one of them is edited, or a module replaced, the network's
own blocks run; and `fused` compares its result with the network's.
"""

import copy
import hashlib
import inspect
import logging

import torch
from torch import nn

from .blocks import ChannelNorm, Conv1x1, DecoderBlock, Depthwise3x3, EncoderBlock, GatedFFN, Level, gated
from .ops import channels_last, triton_runtime
from .ops.depthwise import depthwise, gated_depthwise, supports
from .ops.tf32 import convolutions_in_tf32
from .streaming import agrees, hooked, report
from .vssm import VSSM
from .xyscannet import XYScanNet

logger = logging.getLogger(__name__)

FOLLOWED = ChannelNorm, Conv1x1, Depthwise3x3, GatedFFN, VSSM, EncoderBlock, DecoderBlock, Level
SOURCE = "6bf2ca11f72e29efad481766af833339de4a4efd2a707abc2290cddbbf3e6b1f"  # SHA-256 of their methods
# The largest difference from the network's result, as a share of the largest residual: of two ways of rounding to TF32
# or to bf16.
TOLERANCE = {"fp32": 0.01, "bf16": 0.1}


def fused(network: XYScanNet, precision: str = "fp32") -> XYScanNet | None:
    """A network with the same weights and fused blocks, for inference; None if they cannot run or give another result.

    Fp32 products are in TF32, as PyTorch's convolutions are by default; where that is switched off, nothing is fused.

    Args:
        network: in evaluation mode, in fp32.
        precision: that it will run in, fp32 | bf16 (autocast).
    """
    weight = next(network.parameters())
    if not _runs(weight) or weight.dtype != torch.float32 or source() != SOURCE:
        return None
    made = with_fused_levels(network)
    logger.info("comparing fused blocks with the network's; the first time on a machine, their kernels are compiled")
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=precision == "bf16"):
        if agrees(network, made, TOLERANCE[precision]):
            return made
    logger.info("fused blocks do not reproduce this network; its own blocks run")
    return None


def source() -> str:
    """SHA-256 of the methods that this file repeats, as they are now; empty where their source is missing."""
    methods = [method for module in FOLLOWED for method in (module.__init__, module.forward)]
    try:
        text = "".join(map(inspect.getsource, [*methods, gated]))
    except (OSError, TypeError):  # not in a file, or not Python
        return ""
    return hashlib.sha256(text.encode()).hexdigest()


def with_fused_levels(network: XYScanNet) -> XYScanNet:
    """`fused`, without comparing."""
    made = copy.copy(network)
    made._modules = {
        name: FusedLevel(module) if type(module) is Level else module for name, module in network._modules.items()
    }
    return made


class FusedLevel(nn.Module):
    """The blocks of one level. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, blocks: Level):
        super().__init__()
        self.blocks = blocks

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not _runs(x) or hooked(self.blocks.modules()):
            return self.blocks(x)
        for block in self.blocks:
            for norm, module in _parts(block):
                x = _residual(x, norm, module)
                report(x)
        return x


def _runs(x: torch.Tensor) -> bool:
    """Whether the kernels take features like x, and round as PyTorch would."""
    return triton_runtime.runs(x) and (x.dtype != torch.float32 or convolutions_in_tf32())


def _parts(block: nn.Module) -> list[tuple[nn.Module | None, nn.Module]]:
    """(norm, f) of each x = x + f(norm(x)); without a norm, x = f(x)."""
    if type(block) is EncoderBlock:
        return [(block.norm1_ffn, block.ffn1), (block.norm2_ffn, block.ffn2)]
    if type(block) is DecoderBlock:
        mixing, feeding = (block.norm1_ssm, block.intra), (block.norm1_ffn, block.ffn1)
        return [mixing, feeding, (block.norm2_ssm, block.inter), (block.norm2_ffn, block.ffn2)]
    return [(None, block)]


def _residual(x: torch.Tensor, norm: nn.Module | None, module: nn.Module) -> torch.Tensor:
    if norm is None:
        return module(x)
    known = type(norm) is ChannelNorm and triton_runtime.autocast_dtype(x, x.dtype) == x.dtype
    if known and type(module) is GatedFFN and _plain(module.dwconv, module.project_in, module.project_out):
        return _feed_forward(x, norm, module)
    if known and isinstance(module, VSSM) and type(module).forward is VSSM.forward:
        if _plain(module.dwconv, module.proj_in, module.conv_input, module.fuse_out, module.proj_out):
            return _scan(x, norm, module)
    return x + module(norm(x))


def _plain(dwconv: nn.Module, *products: nn.Module) -> bool:
    """Whether a block's convolutions are the network's own, without biases."""
    of_pixels = all(type(conv) is Conv1x1 and conv.bias is None for conv in products)
    return of_pixels and type(dwconv) is Depthwise3x3 and supports(dwconv)


def _feed_forward(x: torch.Tensor, norm: ChannelNorm, ffn: GatedFFN) -> torch.Tensor:
    from .ops import fused_triton as ops  # imported here: not every machine has Triton

    hidden = gated_depthwise(_normed_product(x, norm, ffn.project_in), ffn.dwconv.weight)
    return _channels_first(ops.product(channels_last(hidden), _matrix(ffn.project_out, x), channels_last(x)))


def _scan(x: torch.Tensor, norm: ChannelNorm, vssm: VSSM) -> torch.Tensor:
    from .ops import fused_triton as ops

    hidden = depthwise(_normed_product(x, norm, vssm.proj_in), vssm.dwconv.weight)
    features, Y = channels_last(hidden).chunk(2, dim=-1)
    F_h, F_v = _channels_first(ops.product(features, _matrix(vssm.conv_input, x))).chunk(2, dim=1)
    h, v = (_adjacent(part.to(x.dtype).movedim(1, -1)) for part in vssm.dual_scanner(F_h, F_v))
    W_in, W_out = _matrix(vssm.fuse_out, x), _matrix(vssm.proj_out, x)
    return _channels_first(ops.gated_projection(channels_last(x), h, v, Y, W_in, W_out))


def _normed_product(x: torch.Tensor, norm: ChannelNorm, conv: nn.Conv2d) -> torch.Tensor:
    from .ops import fused_triton as ops

    body, W = norm.body, _matrix(conv, x)
    return _channels_first(ops.normed_product(channels_last(x), body.weight, body.bias, body.eps, W))


def _matrix(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return conv.weight.flatten(1).to(x.dtype).contiguous()


def _adjacent(pixels: torch.Tensor) -> torch.Tensor:
    return pixels if pixels.stride(-1) == 1 else pixels.contiguous()


def _channels_first(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.movedim(-1, 1)
