"""The roofline: a lower bound on time, from the baseline's arithmetic and the bytes that its layers move."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .baseline import Mamba

GATES = 2  # exponentials per channel and step, besides one for each state: softplus and SiLU
LAYERS = ("convolution", "mm", "addmm", "bmm", "native_layer_norm")


class Work(NamedTuple):
    """The work of one run. Elementwise operations count as fused into the layers."""

    flops: int  # of convolutions and matrix products, two for a multiply-add
    numbers: int  # read and written by layers and scans, each once
    exps: int  # exponentials in scans

    def seconds(self, itemsize: int, matmul_rate: float, copy_rate: float) -> float:
        """Time of arithmetic or memory traffic, whichever is longer, at measured rates in FLOP/s and bytes/s."""
        return max(self.flops / matmul_rate, self.numbers * itemsize / copy_rate)


def scan_work(channels: int, tokens: int, states: int, backward: bool) -> Work:
    """Work of selective scans over ``tokens`` steps in total.

    The forward pass reads u, delta, z, B and C and writes y. The backward pass reads these and the gradient of y,
    writes five gradients and recomputes the states. Parameters of a channel (A, D, bias) are too small to count.
    """
    numbers = (4 * channels + 2 * states) * tokens
    exps = (states + GATES) * channels * tokens
    if backward:
        return Work(0, numbers + (7 * channels + 4 * states) * tokens, 2 * exps)
    return Work(0, numbers, exps)


def count(baseline: nn.Module, shape: tuple[int, ...], backward: bool) -> Work:
    """Work of a baseline, or of a part of it, on the meta device, for an input of ``shape``; computes nothing."""
    scans: list[Work] = []

    def scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        scans.append(scan_work(u.shape[1], u.shape[0] * u.shape[2], A.shape[1], backward))
        return u + delta + z + (B + C).sum(1, keepdim=True)  # not a scan, but has all its gradients

    for module in baseline.modules():
        if isinstance(module, Mamba):
            module.scan = scan  # type: ignore[assignment]
    products, layers = FlopCounterMode(display=False), _Traffic()
    with torch.set_grad_enabled(backward), layers:
        with products:
            out = baseline(torch.empty(shape, device="meta"))
        if backward:
            out.sum().backward()
    # Each product has two gradients of its own size. The counter is wrong about those of depth-wise convolutions.
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
