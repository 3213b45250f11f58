"""Parameters and multiply-adds of a network by module, counted on shapes alone, without computing anything.

``torch.utils.flop_counter`` counts convolutions and matrix products; norms, gates, activations and resizing count as
nothing. Two operations run in kernels of their own, which it does not see, and are counted here:

- the causal convolution, as PyTorch's depth-wise one: ``d_conv`` multiply-adds an element;
- the selective scan: 4 N + 3 an element, that is a channel at a step, with N states. Every multiplication of Gu & Dao
  2023, Algorithm 2, counts as a multiply-add, whether or not an addition follows: delta A, (delta u) B, decay h and C h
  for each state; delta u, D u and y SiLU(z) once. SS2D's scans have no z: 4 N + 2. Exponentials (N + 2 an element)
  count as nothing, like activations. There are other conventions: https://github.com/state-spaces/mamba/issues/110
  has 9 N floating-point operations.
"""

from __future__ import annotations

import re
from contextlib import ExitStack, nullcontext
from itertools import chain
from math import prod
from typing import NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models import XYScanNet
from models.fusion import AFF, KLFF, Skip

WHOLE = ""  # named_modules()'s name of the network itself
FUSIONS = ("clff_level1", "clff_level2")
STATE_SPACE = re.compile(r"decoder_level\d\.\d+\.(intra|inter)")


class Macs(NamedTuple):
    """Multiply-adds by module, under the names of ``named_modules()``.

    Attributes:
        of: all of a module's; a module without any may be missing.
        in_scans: those of them in selective scans.
    """

    of: dict[str, int]
    in_scans: dict[str, int]


class Counts(NamedTuple):
    """What a network costs on one image.

    Attributes:
        parameters: by the network's own modules, in their order.
        macs: as computed here.
        written: multiply-adds of the whole network, layer by layer as in the paper, where KLFF convolves after the
            up-sampling.
        fusion: multiply-adds of the fusion modules as Table 8 counts them; None for modules that are not the paper's.
    """

    parameters: dict[str, int]
    macs: Macs
    written: int
    fusion: int | None

    @property
    def state_space(self) -> int:
        """Multiply-adds of the decoder's state space modules."""
        return sum(number for name, number in self.macs.of.items() if STATE_SPACE.fullmatch(name))


def count_network(network: XYScanNet, size: int) -> Counts:
    """For one image of ``size`` x ``size`` pixels, a multiple of 4."""
    parameters = {
        name: sum(parameter.numel() for parameter in module.parameters()) for name, module in network.named_children()
    }
    macs, fusion = count(network, 1, 3, size, size), paper_fusion_macs(network, size, size)
    written = macs.of[WHOLE]
    # KLFF is written in the paper as it is counted there: resized, then convolved.
    if fusion is not None and type(network.clff_level1) is KLFF:
        written += fusion - sum(macs.of[name] for name in FUSIONS)
    return Counts(parameters, macs, written, fusion)


def count(module: nn.Module, *shape: int) -> Macs:
    """Multiply-adds of one call with an input of ``shape``."""
    scan = torch.ops.xyscannet.selective_scan
    shapes = {name: tensor.to("meta") for name, tensor in chain(module.named_parameters(), module.named_buffers())}
    with ExitStack() as stack:
        stack.enter_context(patch("models.mamba.causal_conv_silu", _causal_conv_silu))
        # As torch.compile sees it: the scan is one operation, without a kernel that needs numbers.
        stack.enter_context(patch("torch.compiler._is_compiling_flag", True))  # a mock would stay in PyTorch's compiler
        stack.enter_context(patch("torch.autocast", lambda *_, **__: nullcontext()))  # it knows no device "meta"
        stack.enter_context(torch.no_grad())
        counter = stack.enter_context(FlopCounterMode(display=False, custom_mapping={scan: _scan_flops}))
        stack.enter_context(torch.device("meta"))  # for the constants that a module makes, too
        torch.func.functional_call(module, shapes, torch.empty(shape))
    of, in_scans = {}, {}
    for name, flops in counter.get_flop_counts().items():
        inner = WHOLE if name == "Global" else name.partition(".")[2]
        of[inner], in_scans[inner] = sum(flops.values()) // 2, flops.get(scan, 0) // 2
    return Macs(of, in_scans)


def scan_macs(elements: int, states: int, skip: bool = True, gate: bool = True) -> int:
    """Multiply-adds of a selective scan over ``elements`` channels and steps, with D (skip) and z (gate) or without."""
    return elements * (4 * states + 1 + skip + gate)


def paper_fusion_macs(network: XYScanNet, height: int, width: int) -> int | None:
    """Of both fusion modules as Table 8 counts them; None for modules that are not in it.

    All levels are resized to the current one before the convolutions, every parameter counts once a pixel, biases too,
    and AFF's ReLU. Height and width are multiples of 2.
    """
    total, level1 = 0, height * width // network.unshuffle**2
    for fusion, pixels in ((network.clff_level1, level1), (network.clff_level2, level1 // 4)):
        if type(fusion) not in (KLFF, AFF, Skip):
            return None
        activations = fusion.conv1.out_channels if isinstance(fusion, AFF) else 0
        total += pixels * (sum(parameter.numel() for parameter in fusion.parameters()) + activations)
    return total


def _scan_flops(
    u: torch.Size,
    delta: torch.Size,
    A: torch.Size,
    B: torch.Size,
    C: torch.Size,
    D: torch.Size | None = None,
    z: torch.Size | None = None,
    *_,
    **__,
) -> int:
    """Of xyscannet::selective_scan, of whose arguments the counter gives the shapes; two to a multiply-add."""
    return 2 * scan_macs(prod(u), A[1], D is not None, z is not None)


def _causal_conv_silu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, _backend: str) -> torch.Tensor:
    """models.ops.causal_conv, by the convolution that PyTorch counts."""
    padded = F.pad(x.flatten(0, -3), (weight.shape[1] - 1, 0))
    return F.silu(F.conv1d(padded, weight.unsqueeze(1), bias, groups=len(weight))).unflatten(0, x.shape[:-2])
