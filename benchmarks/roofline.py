"""The roofline: how fast the plain network could be if nothing but its arithmetic and its layers' bytes took time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .baseline import Mamba

GATES = 2  # exponentials of a channel at a step beside its states': softplus and SiLU
LAYERS = ("convolution", "mm", "addmm", "bmm", "native_layer_norm")


class Work(NamedTuple):
    """One run's work.

    flops: of convolutions and matrix products, two for a multiply-add. numbers: read and written by layers and scans,
    each once, all between them being fused into them. exps: the scans' exponentials.
    """

    flops: int
    numbers: int
    exps: int

    def seconds(self, itemsize: int, matmul_rate: float, copy_rate: float) -> float:
        """The longer of arithmetic and traffic, at measured rates in FLOP/s and bytes/s."""
        return max(self.flops / matmul_rate, self.numbers * itemsize / copy_rate)


def scan_work(channels: int, tokens: int, states: int, backward: bool) -> Work:
    """Of one scan of ``tokens`` steps in all.

    Forward: u, delta, z, B and C are read, y is written. Backward: those and y's gradient are read, five gradients are
    written; the states are computed again. What belongs to a channel alone (A, D, bias) is too small to count.
    """
    numbers = (4 * channels + 2 * states) * tokens
    exps = (states + GATES) * channels * tokens
    if backward:
        return Work(0, numbers + (7 * channels + 4 * states) * tokens, 2 * exps)
    return Work(0, numbers, exps)


def count(baseline: nn.Module, shape: tuple[int, ...], backward: bool) -> Work:
    """Work of a baseline or a part of it, made on the meta device, for an input of ``shape``; nothing is computed."""
    scans: list[Work] = []

    def scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        scans.append(scan_work(u.shape[1], u.shape[0] * u.shape[2], A.shape[1], backward))
        return u + delta + z + (B + C).sum(1, keepdim=True)  # no real scan, but all gradients flow

    for module in baseline.modules():
        if isinstance(module, Mamba):
            module.scan = scan
    products, layers = FlopCounterMode(display=False), _Traffic()
    with torch.set_grad_enabled(backward), layers:
        with products:
            out = baseline(torch.empty(shape, device="meta"))
        if backward:
            out.sum().backward()
    # A product's two gradients are products of its size each; the counter errs on those of depth-wise convolutions.
    flops = products.get_total_flops() * (3 if backward else 1)
    return Work(flops, layers.numbers + sum(work.numbers for work in scans), sum(work.exps for work in scans))


class _Traffic(TorchDispatchMode):
    """Counts the numbers that layers and their gradients read and write."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__.removesuffix("_backward") in LAYERS:
            self.numbers += sum(t.numel() for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor))
        return out
