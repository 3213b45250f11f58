"""Fused blocks compute what the network computes, edited or not; their kernels are in ops/test_triton.py."""

import sys
from functools import partialmethod
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

import models.api
import models.fused
from engine.predict import progress
from engine.predict.inference import Restorer
from engine.predict.local_pooling import use_local_pooling
from models import XYScanNet
from models.blocks import EncoderBlock, GatedFFN
from models.fused import FusedLevel, fused
from models.vssm import IntraVSSM
from models.weights import described_state


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
    runtime = SimpleNamespace(runs=lambda *_: True, autocast_dtype=lambda x, _: x.dtype)
    monkeypatch.setattr(models.fused, "triton_runtime", runtime)


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


def test_the_forward_methods_are_those_that_are_followed():
    found = models.fused.source()
    assert found == models.fused.SOURCE, f"edit models/fused.py as well, which repeats them; then its SOURCE is {found}"


def test_hooks_are_called(kernels):
    network, seen = network_of(), []
    made = fused(network)
    network.decoder_level1[0].ffn1.project_out.register_forward_hook(lambda *given: seen.append(given[2]))
    assert difference(network, made) < 1e-6 and len(seen) == 2


def test_other_dtypes_run_unfused(kernels, monkeypatch):
    """Changed after fusing, or within autocast by a module of one's own."""
    network = network_of()
    made = fused(network)
    monkeypatch.setattr(models.fused.triton_runtime, "runs", lambda x: x.dtype != torch.float64)
    with torch.no_grad():
        images = (torch.rand(1, 3, 16, 24) - 0.5).double()
        assert torch.equal(network.double()(images), made(images))
        monkeypatch.setattr(models.fused.triton_runtime, "autocast_dtype", lambda *_: torch.bfloat16)
        assert difference(network.float(), made) == 0
    assert fused(network.bfloat16()) is None


def test_where_tf32_is_switched_off_nothing_is_fused(kernels, monkeypatch):
    monkeypatch.setattr(models.fused, "convolutions_in_tf32", lambda: False)
    assert fused(network_of()) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_prediction_restores_with_fused_blocks(kernels, tmp_path, precision):
    torch.save(described_state(network_of()), tmp_path / "weights.pth")
    restorer = Restorer(tmp_path / "weights.pth", "a_job", torch.device("cpu"), precision, streamed=False)
    plain = Restorer(tmp_path / "weights.pth", "a_job", torch.device("cpu"), precision, streamed=False, compiled=True)
    assert restorer.fused and not plain.fused
    plain._full, images = plain.network, torch.rand(1, 3, 24, 36) - 0.5
    with mock.patch.object(FusedLevel, "forward", autospec=True, side_effect=FusedLevel.forward) as forward:
        difference = (restorer.restore(images)[0] - plain.restore(images)[0]).abs().max()
    assert difference < (1e-6 if precision == "fp32" else 0.02) and forward.call_count == 6


def test_progress_is_reported_by_fused_blocks(kernels, tmp_path, monkeypatch):
    torch.save(described_state(network_of()), tmp_path / "weights.pth")
    restorer = Restorer(tmp_path / "weights.pth", "a_job", torch.device("cpu"), streamed=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "SMALL", 0)
    with (
        mock.patch.object(progress.Work, "_count", autospec=True) as count,
        progress.show_progress(restorer, 64, 64, "x"),
    ):
        count.reset_mock()
        restorer.restore(torch.zeros(1, 3, 64, 64))
    assert count.call_count == 3 * 2 + 3 * 4  # parts of three encoder and three decoder blocks


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


def test_an_edited_network_is_not_fused_even_where_it_gives_the_same(kernels, monkeypatch):
    """As it may on a small image, or without autocast."""
    network, forward, made = network_of(), GatedFFN.forward, GatedFFN.__init__
    for edited in (lambda self, x: forward(self, x), partialmethod(forward)):
        monkeypatch.setattr(GatedFFN, "forward", edited)
        assert fused(network) is None
    monkeypatch.setattr(GatedFFN, "forward", forward)
    assert fused(network) is not None
    monkeypatch.setattr(GatedFFN, "__init__", lambda self, dim: made(self, dim))
    assert fused(network) is None


def test_convolutions_that_were_replaced_run_unfused(kernels):
    """A bias is small enough to pass for rounding to bf16."""
    network = network_of()
    network.encoder_level1[0].ffn1.project_in = torch.nn.Conv2d(8, 16, 1)
    network.encoder_level1[0].ffn2.dwconv = torch.nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16)
    block = network.decoder_level1[0].intra
    block.dwconv.bias = torch.nn.Parameter(torch.ones(16))
    assert difference(network, fused(network, "bf16")) < 1e-6


def test_kernels_that_compute_something_else_are_not_used(kernels, monkeypatch):
    monkeypatch.setattr("models.ops.fused_triton.product", lambda values, W, x=None: 1.2 * product(values, W, x))
    assert fused(network_of()) is None


def test_kernels_that_fail_are_not_used(kernels, monkeypatch):
    def fail(*_):
        raise Exception("out of resource: shared memory")

    monkeypatch.setattr("models.ops.fused_triton.product", fail)
    assert fused(network_of()) is None


def test_without_triton_nothing_is_fused():
    assert torch.cuda.is_available() or fused(network_of()) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision, least", [("fp32", 70), ("bf16", 40)])
def test_restores_the_same_on_a_gpu(precision, least):
    """Of the shipped weights on a random image, as a PSNR in dB."""
    network = models.api.load("xyscannet_t", "cuda")
    images = torch.rand(2, 3, 180, 322, device="cuda") - 0.5
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        error = (network(images) - fused(network, precision)(images)).float().square().mean()
    assert -10 * error.log10() > least
