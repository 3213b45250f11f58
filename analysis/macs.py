"""Multiply-adds of a network by module, counted by PyTorch's own counter while nothing is computed.

torch.utils.flop_counter sees convolutions and matrix products; norms, gates, activations and resizing count nothing.
Two parts that run in kernels of their own are invisible to it and are counted here:

- the causal convolution, as PyTorch's depth-wise one: `d_conv` multiply-adds an element;
- the selective scan: 4 N + 3 an element, that is a channel at a step, with N states. Every multiplication of Gu & Dao
  2023, Algorithm 2, counts as a multiply-add, whether or not an addition follows: delta A, (delta u) B, decay h and C h
  for each state; delta u, D u and y SiLU(z) once. SS2D's scans have no z: 4 N + 2. Exponentials (N + 2 an element)
  count nothing, as activations do. Others count otherwise: https://github.com/state-spaces/mamba/issues/110 has 9 N
  floating-point operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from typing import NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from models import XYScanNet
from models.fusion import AFF

WHOLE = ""  # the name that PyTorch gives to a module among its own modules


class Macs(NamedTuple):
    """Multiply-adds by module, under the names of named_modules().

    of: all of a module's; a module that has none may be missing. in_scans: those of them in selective scans.
    """

    of: dict[str, int]
    in_scans: dict[str, int]


def count(module: nn.Module, *shape: int, as_written: bool = False) -> Macs:
    """For one call with an input of ``shape``, nothing being computed.

    as_written: as the paper writes them, where the network takes another order for the same numbers: KLFF's
        convolutions come before the up-sampling.
    """
    scan = torch.ops.xyscannet.selective_scan
    with ExitStack() as stack:
        stack.enter_context(_visible(as_written))
        # As torch.compile sees it: the scan is one operation, without a kernel that needs numbers.
        stack.enter_context(patch("torch.compiler.is_compiling", return_value=True))
        stack.enter_context(torch.no_grad())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        image = torch.empty(shape)
        counter = stack.enter_context(FlopCounterMode(display=False, custom_mapping={scan: _scan_flops}))
        module(image)
    of, in_scans = {}, {}
    for name, flops in counter.get_flop_counts().items():
        inner = WHOLE if name == "Global" else name.partition(".")[2]
        of[inner], in_scans[inner] = sum(flops.values()) // 2, flops.get(scan, 0) // 2
    return Macs(of, in_scans)


def scan_macs(elements: int, states: int, skip: bool = True, gate: bool = True) -> int:
    """Of a selective scan over ``elements`` channels and steps, with D (skip) and z (gate) or without."""
    return elements * (4 * states + 1 + skip + gate)


def papers_fusion_macs(network: XYScanNet, height: int, width: int) -> int:
    """Of both fusion modules as Table 8 counts them: all levels at the current one's size before the convolutions,
    every parameter once a pixel, biases too, and AFF's ReLU. Height and width are multiples of 2."""
    total = 0
    for fusion, pixels in ((network.clff_level1, height * width), (network.clff_level2, height * width // 4)):
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
    """Of xyscannet::selective_scan, whose arguments the counter gives as shapes: two to a multiply-add."""
    return 2 * scan_macs(prod(u), A[1], D is not None, z is not None)


@contextmanager
def _visible(as_written: bool) -> Iterator[None]:
    """The network computes the same numbers by layers that the counter sees."""
    with ExitStack() as stack:
        stack.enter_context(patch("models.mamba.causal_conv_silu", _causal_conv_silu))
        if as_written:
            stack.enter_context(patch("models.fusion._resize", _resize))
        yield


def _causal_conv_silu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, _backend: str) -> torch.Tensor:
    """models.ops.causal_conv's, by the convolution that PyTorch counts."""
    padded = F.pad(x.flatten(0, -3), (weight.shape[1] - 1, 0))
    return F.silu(F.conv1d(padded, weight.unsqueeze(1), bias, groups=len(weight))).unflatten(0, x.shape[:-2])


def _resize(conv: nn.Conv2d, features: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Figure 4 b: first the size, then the convolution."""
    return conv(F.interpolate(features, size=size, mode="nearest"))
