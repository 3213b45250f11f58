"""The feed-forward network computes what its modules are, whatever the kernels take."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.blocks import Depthwise3x3, GatedFFN


def dilated() -> Depthwise3x3:
    conv = Depthwise3x3(16)
    conv.padding = conv.dilation = (2, 2)
    return conv


def biased() -> Depthwise3x3:
    conv = Depthwise3x3(16)
    conv.bias = nn.Parameter(torch.linspace(-1, 1, 16))
    return conv


@pytest.mark.parametrize(
    "dwconv",
    [
        Depthwise3x3(16),
        dilated(),
        biased(),
        nn.Conv2d(16, 16, 5, padding=2, groups=16),
        nn.Conv2d(16, 16, 3, padding=1),
    ],
    ids=["its own", "dilated", "with a bias", "larger", "dense"],
)
def test_a_convolution_of_ones_own_is_followed(dwconv):
    ffn, x = GatedFFN(8), torch.randn(2, 8, 9, 11, generator=torch.Generator().manual_seed(0))
    ffn.dwconv = dwconv
    hidden = F.conv2d(x, ffn.project_in.weight)
    a, b = nn.Conv2d.forward(dwconv, hidden).chunk(2, dim=1)
    assert torch.allclose(dwconv(hidden), nn.Conv2d.forward(dwconv, hidden), atol=1e-5)
    assert torch.allclose(ffn(x), F.conv2d(F.silu(a) * b, ffn.project_out.weight), atol=1e-5)
