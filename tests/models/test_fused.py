"""Fused blocks compute what the network computes, edited or not; their kernels are in ops/test_triton.py."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import models.api
import models.fused
from engine.predict.local_pooling import use_local_pooling
from models import XYScanNet
from models.blocks import EncoderBlock, GatedFFN
from models.fused import FusedLevel, fused
from models.vssm import IntraVSSM


def normed_product(x, norm_weight, norm_bias, eps, W):
    return F.linear(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps), W)


def product(values, W, x=None):
    return F.linear(values, W) + (0 if x is None else x)


def gated_projection(x, h, v, gate, W_in, W_out):
    return x + F.linear(F.silu(gate) * F.linear(torch.cat([h, v], dim=-1), W_in), W_out)


@pytest.fixture
def kernels(monkeypatch):
    """PyTorch's operations in place of the kernels, which take any device then."""
    stand_ins = SimpleNamespace(normed_product=normed_product, product=product, gated_projection=gated_projection)
    monkeypatch.setattr("models.ops.fused_triton", stand_ins, raising=False)
    monkeypatch.setattr(models.fused, "triton_runtime", SimpleNamespace(runs=lambda *_: True))


def network_of(**options) -> XYScanNet:
    torch.manual_seed(0)
    return XYScanNet(8, (1, 1, 1), **options).eval()


def difference(network: XYScanNet, other: XYScanNet) -> float:
    images = torch.rand(2, 3, 24, 36, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.no_grad():
        return float((network(images) - other(images)).abs().max())


@pytest.mark.parametrize(
    "variant",
    [{}, {"slices": "inter"}, {"slices": "intra"}, {"vssm": "ss2d"}, {"scan": "bidirectional"}, {"fusion": "aff"},
     {"unshuffle": 2}],
    ids=str,
)  # fmt: skip
def test_every_variant_is_the_same(kernels, variant):
    network = network_of(**variant)
    made = fused(network)
    assert sum(isinstance(module, FusedLevel) for module in made.children()) == 6
    assert difference(network, made) < 1e-6


def test_weights_are_shared_and_the_network_is_left_as_it_was(kernels):
    network = network_of()
    made = fused(network)
    assert not any(isinstance(module, FusedLevel) for module in network.modules())
    with torch.no_grad():
        network.decoder_level1[0].ffn1.project_out.weight.mul_(3)
    assert difference(network, made) < 1e-6


def test_classes_of_ones_own_run_unchanged(kernels):
    """A module, a block, and windows to average over."""

    class Own(GatedFFN):
        def forward(self, x):
            return 2 * super().forward(x)

    class OwnBlock(EncoderBlock):
        def forward(self, x):
            return 2 * super().forward(x)

    network = network_of()
    network.encoder_level1[0].ffn1.__class__ = Own
    network.encoder_level2[0].__class__ = OwnBlock
    use_local_pooling(network, 16)
    assert difference(network, fused(network)) < 1e-6


def test_an_edited_scanner_is_followed(kernels, monkeypatch):
    monkeypatch.setattr(IntraVSSM, "dual_scanner", lambda self, F_h, F_v: (F_v, 2 * F_h))
    network = network_of()
    assert difference(network, fused(network)) < 1e-6


def test_an_edited_network_is_not_fused(kernels, monkeypatch):
    network, forward = network_of(), GatedFFN.forward
    monkeypatch.setattr(GatedFFN, "forward", lambda self, x: 2 * forward(self, x))
    assert fused(network) is None


def test_kernels_that_fail_are_not_used(kernels, monkeypatch):
    def fail(*_):
        raise Exception("out of resource: shared memory")

    monkeypatch.setattr("models.ops.fused_triton.product", fail)
    assert fused(network_of()) is None


def test_without_triton_nothing_is_fused():
    assert torch.cuda.is_available() or fused(network_of()) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision, least", [("fp32", 60), ("bf16", 40)])
def test_restores_the_same_on_a_gpu(precision, least):
    """Of the shipped weights on a random image, as a PSNR in dB."""
    network = models.api.load("xyscannet_t", "cuda")
    images = torch.rand(2, 3, 180, 322, device="cuda") - 0.5
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        error = (network(images) - fused(network, precision)(images)).float().square().mean()
    assert -10 * error.log10() > least
