"""Depth-wise gate, causal convolution, divergence and gate against PyTorch's own operations, values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from models.ops import depthwise as op
from models.ops.causal_conv import causal_conv_silu
from models.ops.depthwise import depthwise, gated_depthwise, gated_depthwise_ref
from models.ops.kl_divergence import kl_divergence, kl_divergence_ref
from models.ops.native.view import runs_in_c
from models.ops.pointwise import pointwise, pointwise_ref
from models.ops.selective_scan import cpu
from models.ops.silu_gate import silu_gate, silu_gate_ref

needs_compiler = pytest.mark.skipif(bool(cpu.why_missing()), reason=f"cpu: {cpu.why_missing()}")


def assert_same(ours, theirs, inputs, tolerance):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    weights = torch.cos(torch.arange(ours.numel()).to(ours.dtype)).reshape(ours.shape)
    for a, b in zip(*(torch.autograd.grad((out * weights).sum(), inputs) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max([1.0, *b.abs().flatten().tolist()]))


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (1, 2, 1, 1), (1, 4, 1, 40), (3, 80, 33, 9), (1, 48, 66, 70)])
def test_gated_depthwise(shape, threads, monkeypatch):
    """Channels that fill no vector, images of a pixel, a row, more than a strip, wider than a tile."""
    assert runs_in_c("depthwise.c", torch.zeros(1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    weight, x = torch.randn(shape[1], 1, 3, 3, requires_grad=True), torch.randn(shape, requires_grad=True)
    assert_same(gated_depthwise(x, weight), gated_depthwise_ref(x, weight), (x, weight), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_pointwise(dtype, bias):
    """Of the second half of a wider map, without a copy of it."""
    torch.manual_seed(0)
    wide = torch.randn(2, 12, 5, 7, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    conv = torch.nn.Conv2d(6, 9, 1, bias=bias, dtype=dtype)
    x, weights = wide.chunk(2, dim=1)[1], tuple(conv.parameters())
    y = pointwise(x, *weights)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_same(y, pointwise_ref(x, *weights), (wide, *weights), 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert pointwise(x, *weights).dtype == pointwise_ref(x, *weights).dtype


def test_gated_depthwise_in_float64_and_without_a_compiler(monkeypatch):
    torch.manual_seed(0)
    weight, x = torch.randn(6, 1, 3, 3), torch.randn(2, 6, 5, 4)
    y = gated_depthwise(x, weight)
    monkeypatch.setattr(op, "runs_in_c", lambda *_: False)
    torch.testing.assert_close(gated_depthwise(x, weight), y)
    torch.testing.assert_close(gated_depthwise(x.double(), weight.double()), y.double(), rtol=1e-5, atol=1e-6)


@needs_compiler
def test_gated_depthwise_keeps_only_its_input_for_the_backward_pass():
    weight = torch.randn(8, 1, 3, 3, requires_grad=True)
    x, kept = torch.randn(1, 8, 16, 16, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        gated_depthwise(x, weight)
    assert sum(kept) == x.numel() + weight.numel()


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=needs_compiler)])
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("shape", [(2, 9, 21, 20), (1, 1, 1, 3), (1, 3, 2, 40)])
def test_causal_convolution(shape, dim, backend):
    """Along the columns or rows of one half of a wider map; shorter than the kernel too."""
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(shape[-1], shape[-1], 4, padding=3, groups=shape[-1])
    xz = torch.randn(*shape[:-1], 2 * shape[-1], requires_grad=True)
    x = xz[..., : shape[-1]].movedim(dim, -1)
    expected = F.silu(conv(x.flatten(0, 1))[..., : x.shape[-1]]).unflatten(0, x.shape[:2])
    ours = causal_conv_silu(x, conv.weight.squeeze(1), conv.bias, backend)
    assert backend != "cpu" or ours.movedim(-1, dim).is_contiguous()
    assert_same(ours, expected, (xz, conv.weight, conv.bias), 1e-5)


PAIRS = pytest.mark.parametrize(
    "op, ref", [(silu_gate, silu_gate_ref), (kl_divergence, kl_divergence_ref)], ids=["silu_gate", "kl_divergence"]
)


@PAIRS
def test_pairs_in_float64(op, ref):
    torch.manual_seed(0)
    a, b = (8 * torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)).requires_grad_().unbind()
    assert_same(op(a, b), ref(a, b), (a, b), 1e-12)
    assert torch.autograd.gradcheck(op, (a, b))


@needs_compiler
@PAIRS
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (1, 48, 9, 11), (3, 72, 1, 1), (0, 8, 2, 2)])
def test_pairs_in_c(shape, order, threads, op, ref, monkeypatch):
    """Channels that fill no vector, half of a wider map, and a gradient that is one number for all."""
    assert runs_in_c("pairs.c", torch.zeros(1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    wide = (4 * torch.randn(shape[0], 2 * shape[1], *shape[2:])).contiguous(memory_format=order).requires_grad_()
    a = torch.randn(shape).contiguous(memory_format=order).requires_grad_()
    b = wide.chunk(2, dim=1)[1]
    if a.numel():
        assert op(a, b).is_contiguous(memory_format=torch.channels_last)
    assert_same(op(a, b), ref(a, b), (a, wide), 2e-6)
    for ours, theirs in zip(*(torch.autograd.grad(f(a, b).sum(), (a, wide)) for f in (op, ref)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)


@PAIRS
def test_pairs_are_broadcast(op, ref):
    """As for KLFF with pooled features: kernels take tensors of one shape alone."""
    torch.manual_seed(0)
    a, pooled = torch.randn(2, 5, 7, 3, requires_grad=True), torch.randn(2, 5, 1, 1, requires_grad=True)
    assert_same(op(a, pooled), ref(a, pooled), (a, pooled), 2e-6)
    assert_same(op(pooled, a), ref(pooled, a), (pooled, a), 2e-6)


def test_depthwise_weights_of_other_channels_are_named():
    for function in (depthwise, gated_depthwise):
        with pytest.raises(RuntimeError, match="channels"):
            function(torch.randn(1, 8, 5, 5), torch.randn(6, 1, 3, 3))


def test_kl_divergence_in_float32_is_exact_for_any_logit():
    """Far beyond where sigmoid is 0 or 1, where p log p must not become 0 times infinity."""
    values = torch.tensor([-1e4, -120.0, -20.0, -1e-3, 0.0, 3.0, 20.0, 120.0, 1e4])
    current, other = torch.cartesian_prod(values, values).t().requires_grad_()
    exact = kl_divergence_ref(current.double(), other.double())
    torch.testing.assert_close(kl_divergence(current, other).double(), exact, rtol=1e-6, atol=2e-7)
    for ours, theirs in zip(
        *(torch.autograd.grad(kl.sum(), (current, other)) for kl in (kl_divergence(current, other), exact)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=2e-7)
