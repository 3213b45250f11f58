"""Work is counted as one counts it by hand, and without computing anything."""

from functools import partial

import pytest
import torch

from benchmarks.baseline import Baseline, GatedFFN, Mamba
from benchmarks.roofline import Work, count, scan_work
from models.ops.selective_scan import selective_scan


def on_meta(module, *arguments):
    with torch.device("meta"):
        return module(*arguments)


def test_convolutions():
    c, pixels = 6, 2 * 5 * 7
    weights = c * 2 * c + 2 * c * 9 + c * c
    work = count(on_meta(GatedFFN, c), (2, c, 5, 7), backward=False)
    assert work == Work(2 * pixels * weights, pixels * (c + 2 * c + 2 * c + 2 * c + c + c) + weights, 0)


def test_mamba():
    d_model, tokens, states, rank = 20, 3 * 9, 16, 2
    d = 2 * d_model
    weights = d_model * 2 * d + d * 4 + d * (rank + 2 * states) + rank * d + d * d_model
    scan = partial(selective_scan, backend="reference")
    work = count(on_meta(Mamba, d_model, scan), (3, 9, d_model), backward=False)
    extra = 3 * 3 * d * 4 * 2  # the convolution also computes the three steps after each row's end
    assert work.flops == 2 * tokens * weights + extra
    assert work.exps == tokens * d * (states + 2)


def test_scan():
    assert scan_work(48, 100, 16, False) == Work(0, 100 * (4 * 48 + 32), 100 * 48 * 18)
    assert scan_work(48, 100, 16, True) == Work(0, 100 * (11 * 48 + 96), 2 * 100 * 48 * 18)


def test_gradients():
    """Backward, a convolution reads its input, its weights and its result's gradient, and writes the other two's."""
    c, pixels = 6, 2 * 5 * 7
    layer = on_meta(torch.nn.Sequential, torch.nn.Conv2d(c, c, 1, bias=False), torch.nn.Conv2d(c, c, 1, bias=False))
    layer.to("meta")
    forward, both = (count(layer, (2, c, 5, 7), backward) for backward in (False, True))
    assert both.flops == 3 * forward.flops == 3 * 2 * 2 * pixels * c * c
    backward = 2 * (pixels * c + c * c + pixels * c) + 2 * c * c + pixels * c  # the input needs no gradient
    assert both.numbers - forward.numbers == backward


def test_work_grows_with_the_pixels():
    baseline = on_meta(Baseline, 48, (1, 1, 1))
    small, large = (count(baseline, (1, 3, side, side), False) for side in (256, 512))
    assert large.flops == pytest.approx(4 * small.flops, rel=0.01)
    assert large.numbers == pytest.approx(4 * small.numbers, rel=0.1)


def test_the_roofline_is_the_longer_of_both():
    assert Work(flops=100, numbers=10, exps=0).seconds(4, matmul_rate=50, copy_rate=10) == 4
    assert Work(flops=300, numbers=10, exps=0).seconds(4, matmul_rate=50, copy_rate=10) == 6
