"""KLFF: the three readings of its gate, against PyTorch's own kl_div; its size as the paper counts it."""

import pytest
import torch
import torch.nn.functional as F

from models.fusion import KLFF
from models.registry import Options


def features(batch=2):
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, 8, 8, 12), (batch, 4, 16, 24), (batch, 16, 4, 6)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_resizing_and_convolution_commute():
    """The definition resizes first, the module convolves first where that is cheaper."""
    klff = KLFF(8, (4, 16)).double()
    current, larger, smaller = features()
    x = klff.conv(current)
    others = [
        klff.conv_n1(F.interpolate(larger, scale_factor=0.5, mode="nearest")),
        klff.conv_n2(F.interpolate(smaller, scale_factor=2, mode="nearest")),
    ]
    expected = klff.fuse_out1(torch.cat([x, sum(klff.gate(x, other) * other for other in others)], dim=1))
    torch.testing.assert_close(klff(current, larger, smaller), expected)


@pytest.mark.parametrize("kl_gate", ["elementwise", "image", "batch"])
def test_gate_is_the_sigmoid_of_the_divergence(kl_gate):
    current, other = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    kl = F.kl_div(other.sigmoid().log(), current.sigmoid(), reduction="none")
    expected = {
        "elementwise": kl,
        "image": kl.mean((1, 2, 3), keepdim=True),
        "batch": kl.mean((0, 1, 2, 3), keepdim=True),
    }[kl_gate].sigmoid()
    torch.testing.assert_close(KLFF(4, (4, 4), Options(kl_gate)).gate(current, other), expected)


@pytest.mark.parametrize("kl_gate, depends", [("elementwise", False), ("image", False), ("batch", True)])
def test_only_the_batch_gate_depends_on_the_neighbours(kl_gate, depends):
    klff, inputs = KLFF(8, (4, 16), Options(kl_gate)).double(), features()
    together = klff(*inputs)[:1]
    alone = klff(*[t[:1] for t in inputs])
    assert torch.allclose(together, alone, rtol=1e-12, atol=1e-12) != depends


def test_all_gates_agree_for_constant_features():
    gates = [
        KLFF(4, (4, 4), Options(gate)).gate(torch.full((1, 4, 3, 3), 0.3), torch.full((1, 4, 3, 3), -0.2))
        for gate in ("elementwise", "image", "batch")
    ]
    assert all(torch.allclose(gate.expand(1, 4, 3, 3), gates[0]) for gate in gates)


def test_size_is_the_papers():
    """Table 8: 71.43 K parameters in both modules of XYScanNet-S."""
    modules = KLFF(48, (96, 192)), KLFF(96, (48, 192))
    assert sum(p.numel() for module in modules for p in module.parameters()) == 71_424


def test_unknown_gate_is_refused():
    with pytest.raises(ValueError, match="'pixel' is unknown; choose one of elementwise, image, batch"):
        KLFF(4, (4, 4), Options("pixel"))
