"""The network with its blocks in fewer passes over memory, for inference on a GPU: the same result to rounding.

A block computes x + f(norm(x)) two or four times. Here the norm, the 1x1 convolutions, the gate of Eq. 5 and the sum
are two or three kernels (ops/fused_triton.py), and S6's matrix products use tensor cores as convolutions do. Depth-wise
convolutions and scans are as in the network; modules of other classes run unchanged.

This file repeats what GatedFFN, VSSM and the blocks compute. `fused` therefore compares its result with the network's.
"""

import contextlib
import copy
import logging
from collections.abc import Iterator

import torch
from torch import nn

from .blocks import ChannelNorm, DecoderBlock, EncoderBlock, GatedFFN, Level
from .ops import triton_runtime
from .ops.depthwise import depthwise, gated_depthwise
from .streaming import TOLERANCE, agrees
from .vssm import VSSM
from .xyscannet import XYScanNet

logger = logging.getLogger(__name__)

ROUNDED = 0.1  # of the largest residual, by which the results may differ in TF32 or half precision


def fused(network: XYScanNet, precision: str = "fp32") -> XYScanNet | None:
    """A network with the same weights and fused blocks, without gradients; None where that cannot run or differs.

    It differs where a class was edited, or patched at run time, in a way that this file does not follow.

    Args:
        network: in evaluation mode.
        precision: that it will run in, fp32 | bf16 (autocast).
    """
    weight = next(network.parameters())
    if not triton_runtime.runs(weight):
        return None
    made = with_fused_levels(network)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        same = agrees(network, made, TOLERANCE)
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=precision == "bf16"):
        if same and agrees(network, made, ROUNDED):
            return made
    logger.info("fused blocks do not reproduce this network's output here, so its own blocks run")
    return None


def with_fused_levels(network: XYScanNet) -> XYScanNet:
    """`fused`, without comparing."""
    made = copy.copy(network)
    made._modules = {name: FusedLevel(m) if isinstance(m, Level) else m for name, m in network._modules.items()}
    return made


class FusedLevel(nn.Module):
    """The blocks of one level. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, blocks: Level):
        super().__init__()
        self.blocks = blocks

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with _tf32_as_in_convolutions():
            for block in self.blocks:
                for norm, module in _parts(block):
                    x = _residual(x, norm, module)
        return x


@contextlib.contextmanager
def _tf32_as_in_convolutions() -> Iterator[None]:
    """By default, PyTorch computes fp32 convolutions in TF32 and matrix products, such as S6's, do without."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        matmul.allow_tf32 = before


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
    if type(norm) is ChannelNorm and type(module) is GatedFFN:
        return _feed_forward(x, norm, module)
    if type(norm) is ChannelNorm and isinstance(module, VSSM) and type(module).forward is VSSM.forward:
        return _scan(x, norm, module)
    return x + module(norm(x))


def _feed_forward(x: torch.Tensor, norm: ChannelNorm, ffn: GatedFFN) -> torch.Tensor:
    from .ops import fused_triton as ops  # imported here: not every machine has Triton

    gated = gated_depthwise(_normed_product(x, norm, ffn.project_in), ffn.dwconv.weight)
    return _first(ops.product(_last(gated), _matrix(ffn.project_out, x), _last(x)))


def _scan(x: torch.Tensor, norm: ChannelNorm, vssm: VSSM) -> torch.Tensor:
    from .ops import fused_triton as ops

    features, Y = _last(depthwise(_normed_product(x, norm, vssm.proj_in), vssm.dwconv.weight)).chunk(2, dim=-1)
    F_h, F_v = _first(ops.product(features, _matrix(vssm.conv_input, x))).chunk(2, dim=1)
    h, v = (_last(part.to(x.dtype), dense=False) for part in vssm.dual_scanner(F_h, F_v))
    W_in, W_out = _matrix(vssm.fuse_out, x), _matrix(vssm.proj_out, x)
    return _first(ops.gated_projection(_last(x), h, v, Y, W_in, W_out))


def _normed_product(x: torch.Tensor, norm: ChannelNorm, conv: nn.Conv2d) -> torch.Tensor:
    from .ops import fused_triton as ops

    body = norm.body
    return _first(ops.normed_product(_last(x), body.weight, body.bias, body.eps, _matrix(conv, x)))


def _matrix(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return conv.weight.flatten(1).to(x.dtype).contiguous()


def _last(features: torch.Tensor, dense: bool = True) -> torch.Tensor:
    """(B, C, H, W) -> (B, H, W, C), dense or with adjacent channels, copied only where they are not."""
    pixels = features.movedim(1, -1)
    return pixels if pixels.stride(-1) == 1 and not dense else pixels.contiguous()


def _first(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.movedim(-1, 1)
