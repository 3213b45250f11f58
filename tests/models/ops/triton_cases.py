"""The Triton kernels against the reference; test_triton.py runs this file in a process of its own.

With TRITON_INTERPRET=1, which counts only if set before Triton is imported, on the CPU and so with tiny sizes;
otherwise on the GPU.
"""

import os
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import triton.language as tl
from triton.runtime import interpreter

from models.blocks import DecoderBlock, EncoderBlock, Level
from models.fused import FusedLevel
from models.ops import causal_conv_triton, depthwise_triton, triton_runtime
from models.ops.causal_conv_triton import causal_conv_silu_triton
from models.ops.channel_norm import channel_norm, channel_norm_ref
from models.ops.depthwise import depthwise, depthwise_ref, gated_depthwise, gated_depthwise_ref
from models.ops.kl_divergence import kl_divergence, kl_divergence_ref
from models.ops.selective_scan import triton_kernel, triton_scan
from models.ops.selective_scan.reference import selective_scan_ref
from models.ops.selective_scan.triton_kernel import selective_scan_triton
from models.ops.silu_gate import silu_gate, silu_gate_ref
from models.ops.tf32 import without_tf32
from models.ops.tuning import LaunchParameters
from models.registry import Options
from models.vssm import InterVSSM, IntraVSSM

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
# The interpreter takes its time over each step and each row.
SMALL = LaunchParameters(chunk=8, depthwise_rows=2) if DEVICE == "cpu" else LaunchParameters()
CHUNK, ROWS = SMALL.chunk, SMALL.depthwise_rows

if DEVICE == "cpu":  # The interpreter patches the language at every call in a kernel, half of its time: here, once.
    for function in (triton_scan.forward, tl.cdiv):  # of ours, which use triton.language, and of its own functions
        interpreter._patch_lang(function.fn)
    interpreter._patch_lang = lambda function: SimpleNamespace(restore=lambda: None)


def draw(*shape, dtype=torch.float32, seed=[0]):  # noqa: B006 (a running seed)
    seed[0] += 1
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed[0]))
    return values.to(DEVICE, dtype).requires_grad_()


def network_inputs(batch, length, channels, states=16, dtype=torch.float32, columns=False):
    """Leaves as S6 has them, channels last, and u, delta, A, B, C, D, z, bias as views of them."""
    shape = (*batch[:-1], length, batch[-1]) if columns else (*batch, length)
    xz, delta, dBC = (draw(*shape, width, dtype=dtype) for width in (2 * channels, channels, 3 + 2 * states))
    A, D, bias = draw(channels, states), draw(channels), draw(channels)
    along = -3 if columns else -2
    x, z = xz.movedim(along, -1).chunk(2, dim=-2)
    _, B, C = dBC.movedim(along, -1).split([3, states, states], dim=-2)
    return [xz, delta, dBC, A, D, bias], [x, delta.movedim(along, -1), -torch.exp(A / 2), B, C, D, z, bias - 2]


def weighted(y):
    return (y.float() * torch.sin(torch.arange(y.numel(), device=y.device)).reshape(y.shape)).sum()


def assert_near(value, reference, tolerance):
    """Relative to the largest element."""
    assert value.dtype == reference.dtype and value.shape == reference.shape
    if value.numel():
        error = (value.float() - reference.float()).abs().max() / reference.float().abs().max().clamp(min=1e-6)
        assert error <= tolerance, f"relative error {error:.2e}"


def assert_agree(leaves, inputs, tolerance=1e-4, softplus=True):
    scans = selective_scan_triton, selective_scan_ref
    y, reference = (scan(*inputs, delta_softplus=softplus) for scan in scans)
    assert_near(y, reference, tolerance)
    of_y, of_reference = (torch.autograd.grad(weighted(t), leaves, retain_graph=True) for t in (y, reference))
    for gradient, expected in zip(of_y, of_reference, strict=True):
        assert_near(gradient, expected, tolerance)
    return y


@pytest.fixture(autouse=True)
def small_programs(monkeypatch):
    if DEVICE == "cpu":
        for module in (triton_kernel, depthwise_triton):
            monkeypatch.setattr(module, "launch_parameters", lambda device: SMALL)


@pytest.mark.parametrize("length, columns", [(1, False), (2, True), (7, False), (CHUNK, True), (CHUNK + 5, False)])
def test_rows_and_columns_of_slices(length, columns):
    """Odd lengths and chunks cut short; 20 channels, which divide no block."""
    y = assert_agree(*network_inputs((1, 2) if length < CHUNK else (1, 1), length, 20, columns=columns))
    assert y.movedim(-1, -3 if columns else -2).is_contiguous()


@pytest.mark.parametrize("channels", [1, 32, 40])
def test_blocks_of_channels(channels):
    assert_agree(*network_inputs((2,), 3, channels))


@pytest.mark.parametrize("states", [1, 5])
def test_fewer_states(states):
    assert_agree(*network_inputs((2,), 3, 4, states))


def test_wide_programs(monkeypatch):
    """Lanes of several sequences in one program, and more lanes than there are (sequence, channel) pairs."""
    monkeypatch.setattr(triton_kernel, "forward_lanes", lambda pairs, most: most)
    assert_agree(*network_inputs((2, 3), 2, 24))


def test_sequences_shared_among_few_programs(monkeypatch):
    monkeypatch.setattr(triton_kernel, "launch_parameters", lambda device: LaunchParameters(backward_programs=4))
    assert_agree(*network_inputs((3,), 2, 40))


@pytest.mark.parametrize("chunk", [2, 4])
def test_other_launch_parameters_give_the_same_result(monkeypatch, chunk):
    """What a search for the fastest may choose; 5 steps end within a chunk."""
    other = LaunchParameters(forward_lanes=32, chunk=chunk, backward_programs=3, conv_tile=256, conv_warps=4)
    for module in (triton_kernel, causal_conv_triton):
        monkeypatch.setattr(module, "launch_parameters", lambda device: other)
    assert_agree(*network_inputs((2,), 5, 20))
    x, weight, bias = draw(2, 70, 4).transpose(1, 2), draw(4, 4), draw(4)
    assert_near(causal_conv_silu_triton(x, weight, bias), convolution(x, weight, bias), 1e-5)


def test_many_batch_dimensions():
    leaves, inputs = network_inputs((2, 1, 2, 2), 2, 4)
    assert assert_agree(leaves, inputs).shape == (2, 1, 2, 2, 4, 2)


def test_an_empty_batch():
    leaves, inputs = network_inputs((0, 3), 4, 8)
    y = selective_scan_triton(*inputs, delta_softplus=True)
    assert y.shape == (0, 3, 8, 4)
    gradients = torch.autograd.grad(y.sum(), leaves)
    assert [g.shape for g in gradients] == [leaf.shape for leaf in leaves] and not any(g.any() for g in gradients)
    assert causal_conv_silu_triton(inputs[0].detach(), draw(8, 4), draw(8)).shape == (0, 3, 8, 4)


def test_time_innermost_in_memory():
    """The layout mamba-ssm has: copied, the same result."""
    u, delta, z = (draw(2, 5, 6) for _ in range(3))
    A, B, C = draw(5, 4), draw(2, 4, 6), draw(2, 4, 6)
    assert_agree([u, delta, z, A, B, C], [u, delta, -torch.exp(A), B, C, None, z])


@pytest.mark.parametrize("missing", [["D"], ["z"], ["bias"], ["D", "z", "bias"]])
def test_without_the_optional_arguments(missing):
    (xz, delta, dBC, A, D, bias), inputs = network_inputs((2,), 3, 5)
    for name in missing:
        inputs[{"D": 5, "z": 6, "bias": 7}[name]] = None
    given = [leaf for name, leaf in {"D": D, "bias": bias}.items() if name not in missing]
    assert_agree([xz, delta, dBC, A, *given], inputs)


def test_without_softplus():
    leaves, inputs = network_inputs((2,), 3, 5)
    inputs[1] = inputs[1].abs() / 4
    inputs[7] = None
    assert_agree(leaves[:-1], inputs, softplus=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    leaves, inputs = network_inputs((1, 2), 3, 20, dtype=dtype)
    assert assert_agree(leaves, inputs, 2e-2).dtype == dtype


def test_half_precision_keeps_its_state_in_float32():
    _, inputs = network_inputs((1,), CHUNK + 5, 8, dtype=torch.bfloat16)
    exact = selective_scan_ref(*[t.float() for t in inputs], delta_softplus=True)
    assert_near(selective_scan_triton(*inputs, delta_softplus=True).float(), exact, 2**-8)  # y's own rounding


def test_steps_small_and_large():
    """From softplus(-12) = 6e-6, where log(1 + e) has lost all but two digits, to 100, decays of exp(-1600)."""
    _, (u, _, A, B, C, *_) = network_inputs((1,), 9, 4)
    delta = torch.tensor([-12.0, -7, -3, -2.7, 0, 3, 19.9, 20.1, 100], device=DEVICE).expand(1, 4, 9)
    y = selective_scan_triton(u, delta, 16 * A, B, C, delta_softplus=True)
    exact = selective_scan_ref(*[t.double() for t in (u, delta, 16 * A, B, C)], delta_softplus=True)
    assert torch.allclose(y.double(), exact, rtol=2e-5, atol=1e-9)


def test_gradients_lie_as_their_tensors_do():
    _, inputs = network_inputs((2, 2), 2, 4, columns=True)
    inputs = [t.detach().requires_grad_() for t in inputs]
    y = selective_scan_triton(*inputs, delta_softplus=True)
    du, ddelta, _, dB, dC, _, dz, _ = torch.autograd.grad(y.sum(), inputs)
    for gradient in (du, ddelta, dz):
        assert gradient.stride() == inputs[1].stride()
    assert dB.stride(-2) == dC.stride(-2) == 1


def test_what_is_kept_for_backward():
    """Of the states one in CHUNK steps, and without gradients none."""
    leaves, inputs = network_inputs((2,), CHUNK + 1, 4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = selective_scan_triton(*inputs, delta_softplus=True)
    assert max(t.numel() for t in kept if t.dim() == 3) == 2 * 16 * 2 * 4
    with torch.no_grad():
        silent = selective_scan_triton(*inputs, delta_softplus=True)
    assert torch.equal(silent, y) and not silent.requires_grad


def test_bad_input_is_refused():
    _, inputs = network_inputs((1,), 2, 3, states=17)
    with pytest.raises(ValueError, match=r"up to 16 states, got A of \(3, 17\)"):
        selective_scan_triton(*inputs)
    _, inputs = network_inputs((1,), 2, 3)
    with pytest.raises(ValueError, match="got z in torch.float64"):
        selective_scan_triton(*inputs[:6], inputs[6].double())


def convolution(x, weight, bias):
    """torch's own, with time last."""
    length, rows = x.shape[-1], x.reshape(-1, *x.shape[-2:]).float()
    y = F.conv1d(rows, weight.float()[:, None], bias.float(), padding=3, groups=len(weight))[..., :length]
    return F.silu(y).to(x.dtype).reshape(x.shape)


@pytest.mark.parametrize(
    "batch, length, channels, columns, dtype, tolerance",
    [
        ((2,), 1, 3, False, torch.float32, 1e-5),
        ((1, 2), 2, 8, True, torch.float32, 1e-5),
        ((2, 1), 150, 24, False, torch.float32, 1e-5),
        *[((2, 1, 2), 5, 32, columns, torch.float32, 1e-5) for columns in (False, True)],
        ((1, 2), 70, 24, True, torch.bfloat16, 2e-2),
    ],
)
def test_causal_convolution(batch, length, channels, columns, dtype, tolerance):
    (xz, *_), (x, *_) = network_inputs(batch, length, channels, dtype=dtype, columns=columns)
    weight, bias = draw(channels, 4), draw(channels)
    y, reference = (f(x, weight, bias) for f in (causal_conv_silu_triton, convolution))
    assert_near(y, reference, tolerance)
    if len(batch) < 3:
        assert y.movedim(-1, -3 if columns else -2).is_contiguous()
    of_y, of_reference = (torch.autograd.grad(weighted(t), [xz, weight, bias]) for t in (y, reference))
    for gradient, expected in zip(of_y, of_reference, strict=True):
        assert_near(gradient, expected, tolerance)


@pytest.mark.parametrize("channels", [1, 7, 8, 48, 72, 96, 144, 192, 288, 576])
def test_convolution_tiles_have_no_idle_lane(channels):
    time, columns = causal_conv_triton.tile_shape(channels, 1024)
    assert channels % columns == 0 and time * columns == 1024
    assert columns * 4 >= 32 or channels % 8  # a whole sector of memory where the channels allow it


@pytest.mark.parametrize("sequences, blocks", [(1, 1), (720, 5), (4032, 5), (1280, 18), (3, 5000)])
def test_backward_workers_share_evenly(sequences, blocks):
    workers = triton_kernel.backward_workers(sequences, blocks, 2048)
    rounds = -(-sequences // workers)
    assert workers * blocks <= max(2048, blocks)
    assert workers * rounds - sequences < workers and -(-sequences // rounds) == workers


def norm_of(x, weight):
    return channel_norm(x, weight[:, 0, 0, 0], weight[:, 0, 0, 1], 1e-5)


def norm_ref(x, weight):
    return channel_norm_ref(x, weight[:, 0, 0, 0], weight[:, 0, 0, 1], 1e-5)


def halves(op):
    """An operation on two tensors, of the halves of x, which are strided views of it."""
    return lambda x, weight: op(*(4 * x).chunk(2, dim=1))


OPERATIONS = {
    "norm": (norm_of, norm_ref),
    "depthwise": (depthwise, depthwise_ref),
    "gated_depthwise": (gated_depthwise, gated_depthwise_ref),
    "silu_gate": (halves(silu_gate), halves(silu_gate_ref)),
    "kl_divergence": (halves(kl_divergence), halves(kl_divergence_ref)),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "shape, dtype, tolerance",
    [
        *[(s, torch.float32, 1e-5) for s in ((2, 6, ROWS + 1, 5), (1, 4, 1, 1), (1, 34, 3, 31), (0, 4, 2, 2))],
        ((1, 48, 3, 13), torch.bfloat16, 2e-2),
    ],
)
def test_operations_on_features(operation, shape, dtype, tolerance):
    """More rows than a program has and fewer, shorter and longer than its span, any number of channels, a pixel."""
    op, ref = OPERATIONS[operation]
    x, weight = draw(*shape, dtype=dtype), draw(shape[1], 1, 3, 3)
    leaves = [x] if "_gate" in operation or operation == "kl_divergence" else [x, weight]
    assert triton_runtime.runs(x)
    exact = [leaf.detach().float().requires_grad_() for leaf in (x, weight)]
    with without_tf32():
        y, reference = op(x, weight), ref(*exact)
    assert_near(y, reference.to(y.dtype), tolerance)
    if y.numel():
        assert y.is_contiguous(memory_format=torch.channels_last)
    of_y = torch.autograd.grad(weighted(y), leaves)
    for gradient, expected in zip(of_y, torch.autograd.grad(weighted(reference), exact[: len(leaves)]), strict=True):
        assert_near(gradient, expected.to(gradient.dtype), tolerance)


def test_a_decoder_block(monkeypatch):
    """The kernels together against plain PyTorch: values and gradients in fp32, values under autocast."""
    torch.manual_seed(0)
    options = Options(scan_backend="triton")
    block = DecoderBlock(4, IntraVSSM(4, options), InterVSSM(4, options)).to(DEVICE)
    x = draw(1, 4, 2, 3)

    def run():
        y = block(x)
        gradients = torch.autograd.grad(weighted(y), [x, *block.parameters()])
        with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
            return [y, *gradients], block(x)

    with without_tf32():
        ours, ours_in_bf16 = run()
    monkeypatch.setattr(triton_runtime, "runs", lambda *_: False)
    for module in block.modules():
        if hasattr(module, "scan_backend"):
            module.scan_backend = "torch"
    with without_tf32():
        plain, plain_in_bf16 = run()
    for value, reference in zip(ours, plain, strict=True):
        assert_near(value, reference, 1e-4)
    for in_bf16 in (ours_in_bf16, plain_in_bf16):
        assert_near(in_bf16 - x, plain[0] - x, 0.03)


TF32 = 1e-5 if DEVICE == "cpu" else 2e-3  # which the interpreter does not round to
HALF = torch.float16 if DEVICE == "cpu" else torch.bfloat16  # the interpreter has no matrix products in bf16


@pytest.mark.parametrize("shape, dtype, tolerance", [
    ((2, 5, 19, 24), torch.float32, TF32), ((1, 9, 15, 70), torch.float32, TF32), ((1, 5, 7, 24), HALF, 1e-2)
])  # fmt: skip
def test_products_with_what_stands_around_them(shape, dtype, tolerance):
    """Sizes that no block divides; rows of h and columns of v adjacent, as the scans leave them."""
    from models.ops.fused_triton import gated_projection, normed_product, product

    batch, height, width, C = shape
    with torch.no_grad():
        x, hidden, h, g = (draw(batch, height, width, c, dtype=dtype) for c in (C, 2 * C, C // 2, 2 * C))
        v = draw(batch, width, height, C // 2, dtype=dtype).transpose(1, 2)
        W_in, W_out = (draw(n, C, dtype=dtype) / C**0.5 for n in (2 * C, C))
        weight, bias = draw(C), draw(C)
        exact_x, exact_v, exact_h, exact_W_in, exact_W_out = (t.float() for t in (x, v, h, W_in, W_out))

        normed = F.layer_norm(exact_x, (C,), weight, bias, 1e-5)
        assert_near(normed_product(x, weight, bias, 1e-5, W_in).float(), F.linear(normed, exact_W_in), tolerance)
        half = hidden[..., :C]
        assert_near(product(half, W_in).float(), F.linear(half.float(), exact_W_in), tolerance)
        added = exact_x + F.linear(half.float(), exact_W_out)
        assert_near(product(half, W_out, x).float(), added, tolerance)
        gate = g[..., C:]
        mixed = F.silu(gate.float()) * F.linear(torch.cat([exact_h, exact_v], dim=-1), exact_W_out)
        made = gated_projection(x, h, v, gate, W_out, W_out)
        assert made.dtype == dtype
        assert_near(made.float(), exact_x + F.linear(mixed, exact_W_out), tolerance)


def test_fused_blocks():
    """The blocks of models/fused.py with their kernels, on an odd side."""
    torch.manual_seed(0)
    blocks = Level([EncoderBlock(4), DecoderBlock(4, IntraVSSM(4), InterVSSM(4))]).to(DEVICE)
    x = draw(2, 4, 2, 3).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert_near(FusedLevel(blocks)(x), blocks(x), TF32)
