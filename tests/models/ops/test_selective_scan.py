"""Every backend is bound to the reference, values and gradients; the reference to the recurrence done by hand."""

import math
import sys
import types

import pytest
import torch
import torch.nn.functional as F

import models.ops.selective_scan as selective_scan_module
from models.ops.selective_scan import BACKENDS, choose, cpu, mamba_kernel, resolve_backend, selective_scan, why_not

needs_compiler = pytest.mark.skipif(bool(cpu.why_missing()), reason=f"cpu: {cpu.why_missing()}")
LENGTHS = [1, 2, 3, 7, 8, 9, 16, 63, 64, 65, 252, 320, 1280]


def make_inputs(batch=2, channels=3, length=5, states=4, dtype=torch.float64, device="cpu", seed=0):
    """u, delta, A, B, C, D, z, delta_bias as a network gives them: channels innermost in memory."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    u, delta, z = (draw(batch, length, channels).transpose(1, 2) for _ in range(3))
    B, C = (draw(batch, length, states).transpose(1, 2) for _ in range(2))
    inputs = [u, delta, -torch.exp(draw(channels, states)), B, C, draw(channels), z, draw(channels) - 2]
    return [tensor.detach().requires_grad_() for tensor in inputs]


def values_and_gradients(inputs, backend):
    y = selective_scan(*inputs, delta_softplus=True, backend=backend)
    weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype, device=y.device)).reshape(y.shape)
    return y, torch.autograd.grad((y * weights).sum(), inputs)


def assert_same(inputs, backend, tolerance):
    y, gradients = values_and_gradients(inputs, backend)
    y_reference, gradients_reference = values_and_gradients(inputs, "reference")
    torch.testing.assert_close(y, y_reference, rtol=tolerance, atol=tolerance)
    for gradient, reference in zip(gradients, gradients_reference, strict=True):
        scale = max(1.0, float(reference.abs().max()))
        torch.testing.assert_close(gradient / scale, reference / scale, rtol=tolerance, atol=tolerance)


def test_reference_is_the_recurrence_done_by_hand():
    """One channel, one state, three steps: h_t = exp(d_t a) h_{t-1} + d_t b_t u_t, y_t = c_t h_t + D u_t."""
    u, d, b, c, a, D = [0.5, -1.0, 2.0], [0.1, 0.2, 0.3], [1.0, 2.0, 3.0], [0.7, 0.8, 0.9], -2.0, 0.25
    h, expected = 0.0, []
    for t in range(3):
        h = math.exp(d[t] * a) * h + d[t] * b[t] * u[t]
        expected.append(c[t] * h + D * u[t])
    as_row = [torch.tensor(v, dtype=torch.float64).reshape(1, 1, 3) for v in (u, d, b, c)]
    y = selective_scan(
        as_row[0],
        as_row[1],
        torch.tensor([[a]]).double(),
        as_row[2],
        as_row[3],
        torch.tensor([D]).double(),
        backend="reference",
    )
    torch.testing.assert_close(y.flatten(), torch.tensor(expected, dtype=torch.float64))


def test_gate_bias_and_softplus_are_what_they_say():
    u, delta, A, B, C, D, z, bias = make_inputs()
    plain = selective_scan(u, F.softplus(delta + bias[:, None]), A, B, C, D, backend="reference")
    full = selective_scan(u, delta, A, B, C, D, z, bias, True, backend="reference")
    torch.testing.assert_close(full, plain * F.silu(z))


@pytest.mark.parametrize("length", LENGTHS)
def test_torch_backend_in_float64(length):
    assert_same(make_inputs(length=length), "torch", 1e-11)


@pytest.mark.parametrize("length", [1, 9, 252])
def test_torch_backend_in_float32(length):
    assert_same(make_inputs(batch=3, channels=6, states=16, length=length, dtype=torch.float32), "torch", 2e-5)


def test_torch_backend_takes_sequences_in_groups(monkeypatch):
    """Groups that do not divide the batch: the results are those of one group."""
    monkeypatch.setattr("models.ops.selective_scan.chunked.GROUP_ELEMENTS", 2 * 3 * 4)
    assert_same(make_inputs(batch=5, length=19), "torch", 1e-11)


def test_torch_backend_without_the_optional_arguments():
    u, delta, A, B, C, *_ = make_inputs(length=11)
    delta = delta.abs()
    torch.testing.assert_close(
        selective_scan(u, delta, A, B, C, backend="torch"), selective_scan(u, delta, A, B, C, backend="reference")
    )


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_gradcheck(backend):
    inputs = make_inputs(batch=2, channels=2, length=10, states=3)
    assert torch.autograd.gradcheck(lambda *t: selective_scan(*t, delta_softplus=True, backend=backend), inputs)


def test_large_steps_do_not_overflow():
    """Decays of exp(-1600) a step: a scan in log space would give infinity times zero."""
    u, delta, A, B, C, D, z, bias = make_inputs(length=40, dtype=torch.float32)
    inputs = [u, delta.detach() + 100, A.detach() * 16, B, C, D, z, bias]
    assert_same([t.detach().requires_grad_() for t in inputs], "torch", 1e-4)


def test_half_precision_keeps_its_state_in_float32():
    inputs = make_inputs(length=320, dtype=torch.float32, states=16)
    half = [t.to(torch.bfloat16) if t.dim() == 3 else t for t in inputs]
    y = selective_scan(*half, delta_softplus=True, backend="torch")
    exact = selective_scan(*[t.float() for t in half], delta_softplus=True, backend="reference")
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=1e-2, atol=1e-2)  # the output's own rounding and no more


def test_memory_kept_for_backward_is_a_fraction_of_all_states():
    inputs = make_inputs(batch=4, channels=8, length=256, states=16, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        selective_scan(*inputs, delta_softplus=True, backend="torch")
    assert max(kept) <= 4 * 8 * 256 * 16 // 8


@needs_compiler
@pytest.mark.parametrize("length", LENGTHS)
def test_cpu_backend(length):
    """Channels that fill no vector, one, and more than one; sequences that fill no group."""
    for channels in (3, 16, 40):
        assert_same(make_inputs(batch=5, channels=channels, states=16, length=length, dtype=torch.float32), "cpu", 2e-5)


@needs_compiler
@pytest.mark.parametrize("dim", [1, 2])
def test_cpu_backend_reads_rows_and_columns_where_they_lie(dim, monkeypatch):
    """A map (B, H, W, channels) scanned along H and along W, gate, B and C slices of wider maps, on two threads."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    torch.manual_seed(0)
    xz, x_dbl, delta = (torch.randn(2, 9, 21, width, requires_grad=True) for width in (2 * 20, 5 + 2 * 16, 20))
    A, results = -torch.rand(20, 16), []
    for backend in ("cpu", "reference"):
        x, z = xz.movedim(dim, -1).chunk(2, dim=-2)
        _, B, C = x_dbl.movedim(dim, -1).split([5, 16, 16], dim=-2)
        y = selective_scan(x, delta.movedim(dim, -1), A, B, C, z=z, delta_softplus=True, backend=backend)
        results.append([y, *torch.autograd.grad(y.square().sum(), (xz, x_dbl, delta))])
    assert results[0][0].movedim(-1, dim).is_contiguous()
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=2e-5, atol=2e-5 * reference.abs().max().item())


@needs_compiler
def test_cpu_backend_without_the_optional_arguments_and_with_other_numbers_of_states():
    for states in (1, 20):
        u, delta, A, B, C, *_ = make_inputs(length=11, states=states, dtype=torch.float32)
        inputs = [u, delta.detach().abs().requires_grad_(), A, B, C]
        y, expected = (selective_scan(*inputs, backend=backend) for backend in ("cpu", "reference"))
        torch.testing.assert_close(y, expected, rtol=2e-5, atol=2e-5)
        for ours, reference in zip(*(torch.autograd.grad(t.sum(), inputs) for t in (y, expected)), strict=True):
            torch.testing.assert_close(ours, reference, rtol=2e-5, atol=2e-5 * reference.abs().max().item())


@needs_compiler
def test_cpu_backend_takes_what_does_not_lie_well():
    """Steps innermost, four batch dimensions, half precision."""
    inputs = [t.detach() for t in make_inputs(batch=12, channels=6, states=16, length=10, dtype=torch.float32)]
    expected = selective_scan(*inputs, delta_softplus=True, backend="reference")
    steps_innermost = [t.contiguous() for t in inputs]
    torch.testing.assert_close(selective_scan(*steps_innermost, delta_softplus=True, backend="cpu"), expected)
    many = [t.unflatten(0, (2, 3, 1, 2)) if t.dim() == 3 else t for t in inputs]
    torch.testing.assert_close(selective_scan(*many, delta_softplus=True, backend="cpu").flatten(0, 3), expected)
    half = [t.bfloat16() if t.dim() == 3 else t for t in inputs]
    y = selective_scan(*half, delta_softplus=True, backend="cpu")
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=5e-2, atol=5e-2)


@needs_compiler
@pytest.mark.parametrize("expanded", range(5))
def test_cpu_backend_takes_inputs_expanded_along_the_steps(expanded):
    """As B of a model that is not selective: one value for all steps, whose gradient is their sum."""
    inputs = make_inputs(channels=20, states=16, length=40, dtype=torch.float32)
    wide = {0: 0, 1: 1, 2: 3, 3: 4, 4: 6}[expanded]  # u, delta, B, C, z
    inputs[wide] = inputs[wide].detach()[..., :1].requires_grad_()
    results = []
    for backend in ("cpu", "reference"):
        expanded_inputs = [t.expand(*t.shape[:2], 40) if i == wide else t for i, t in enumerate(inputs)]
        y = selective_scan(*expanded_inputs, delta_softplus=True, backend=backend)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=2e-5, atol=2e-5 * reference.abs().max().item())


@needs_compiler
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_step_size_that_is_nan_gives_nan_from_there_on(backend):
    inputs = [t.detach() for t in make_inputs(channels=20, states=16, length=9, dtype=torch.float32)]
    inputs[1][0, 3, 4] = math.nan
    y = selective_scan(*inputs, delta_softplus=True, backend=backend)
    lost = torch.zeros(y.shape, dtype=torch.bool)
    lost[0, 3, 4:] = True
    assert torch.equal(y.isnan(), lost)


@needs_compiler
def test_cpu_backend_keeps_no_states_without_gradients(monkeypatch):
    kept, parameters = [], cpu._parameters
    monkeypatch.setattr(cpu, "_parameters", lambda *given: kept.append(given[-1] is not None) or parameters(*given))
    inputs = make_inputs(length=40, states=16, dtype=torch.float32)
    with torch.no_grad():
        selective_scan(*inputs, backend="cpu")
    selective_scan(*inputs, backend="cpu")
    assert kept == [False, True]


@needs_compiler
def test_cpu_backend_is_exact_at_the_ends_of_its_functions():
    """Steps so small that softplus is e^x, so large that it is x and the state is forgotten; gates far from zero."""
    for bias, gate in ((-25, -90), (-12, 90), (60, 0), (95, 3)):
        u, delta, A, B, C, D, z, _ = (t.detach() for t in make_inputs(length=40, states=16, dtype=torch.float32))
        inputs = [t.requires_grad_() for t in (u, delta, A, B, C, D, z + gate, torch.full_like(D, bias))]
        assert_same(inputs, "cpu", 2e-5)
        # Relative to the value, not to one: nothing of a small step is lost.
        y, y_reference = (
            selective_scan(u, delta, A, B, C, None, None, inputs[-1], True, backend).detach()
            for backend in ("cpu", "reference")
        )
        torch.testing.assert_close(y, y_reference, rtol=1e-4, atol=1e-6 * y_reference.abs().max().item())


@needs_compiler
def test_cpu_backend_gives_the_same_bits_again():
    inputs = make_inputs(batch=40, channels=24, states=16, length=50, dtype=torch.float32)
    first, again = (values_and_gradients(inputs, "cpu") for _ in range(2))
    assert torch.equal(first[0], again[0]) and all(map(torch.equal, first[1], again[1]))


@pytest.mark.parametrize("dtype, name", [(torch.float32, "cpu"), (torch.bfloat16, "cpu"), (torch.float64, "torch")])
@needs_compiler
def test_auto_is_the_compiled_backend_on_a_cpu(dtype, name):
    assert resolve_backend("auto", torch.device("cpu"), dtype) == name


def test_auto_does_without_a_compiler(monkeypatch):
    monkeypatch.setitem(selective_scan_module.NATIVE, "cpu", ("cpu", lambda: "no C compiler", "install one"))
    assert choose("cpu") == ("torch", "cpu cannot run: no C compiler; install one")
    with pytest.raises(ValueError, match="scan backend cpu cannot run .* no C compiler; install one"):
        resolve_backend("cpu", torch.device("cpu"))


def test_auto_on_a_gpu_prefers_the_kernels(monkeypatch):
    for mamba, triton, expected in ((None, None, "mamba_ssm"), ("x", None, "triton"), ("x", "y", "torch")):
        monkeypatch.setitem(selective_scan_module.NATIVE, "mamba_ssm", ("cuda", lambda m=mamba: m, "install it"))
        monkeypatch.setitem(selective_scan_module.NATIVE, "triton", ("cuda", lambda t=triton: t, "use torch"))
        assert choose("cuda")[0] == expected
        assert choose("cuda", torch.float64)[0] == "torch"


def test_unknown_and_missing_backends_are_refused():
    with pytest.raises(ValueError, match="'cudnn' is unknown.*reference"):
        resolve_backend("cudnn", torch.device("cpu"))
    with pytest.raises(ValueError, match="mamba_ssm cannot run .* on cpu: it runs on cuda; use torch"):
        resolve_backend("mamba_ssm", torch.device("cpu"))
    assert why_not("reference", "cpu") is None


def test_shapes_that_do_not_fit_are_refused():
    u, delta, A, B, C, *_ = make_inputs(length=5)
    with pytest.raises(ValueError, match=r"B and C must be .* = \(2, 4, 5\), got \(2, 4, 4\)"):
        selective_scan(u, delta, A, B[..., :4], C)
    with pytest.raises(ValueError, match="A must be real"):
        selective_scan(u, delta, A[:2], B, C)
    for name, tensor in {"D": A[:1, 0], "z": u[:1], "delta_bias": A[:2, 0]}.items():
        with pytest.raises(ValueError, match=f"{name} must be"):  # PyTorch would broadcast, kernels read past the end
            selective_scan(u, delta, A, B, C, **{name: tensor})


def test_mamba_kernel_is_called_with_its_own_signature(monkeypatch):
    """A stand-in with mamba-ssm's parameter order, computing by our reference."""

    def selective_scan_fn(
        u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
    ):
        assert all(t.is_contiguous() for t in (u, delta, B, C, z)) and not return_last_state
        return BACKENDS["reference"](u, delta, A, B, C, D, z, delta_bias, delta_softplus)

    stand_in = types.SimpleNamespace(selective_scan_fn=selective_scan_fn)
    monkeypatch.setattr(mamba_kernel, "_interface", lambda: stand_in)
    inputs = make_inputs(length=6)
    torch.testing.assert_close(
        BACKENDS["mamba_ssm"](*inputs, delta_softplus=True),
        selective_scan(*inputs, delta_softplus=True, backend="reference"),
    )


def test_nothing_of_ours_imports_mamba_ssm_by_itself():
    assert "mamba_ssm" not in sys.modules


@pytest.mark.gpu
@pytest.mark.skipif(bool(mamba_kernel.why_missing()), reason=f"mamba_ssm: {mamba_kernel.why_missing()}")
@pytest.mark.parametrize("length", LENGTHS)
def test_mamba_kernel_on_a_gpu(length):
    assert_same(
        make_inputs(batch=3, channels=8, states=16, length=length, dtype=torch.float32, device="cuda"),
        "mamba_ssm",
        1e-4,
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_torch_backend_on_a_gpu():
    inputs = make_inputs(batch=3, channels=8, states=16, length=320, dtype=torch.float32, device="cuda")
    assert_same(inputs, "torch", 1e-4)
