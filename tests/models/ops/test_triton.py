"""The Triton kernels: against the reference (triton_cases.py), compiled without a GPU, and on one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import sass
from models.ops import triton_runtime
from models.ops.selective_scan import triton_kernel
from models.ops.tf32 import without_tf32

triton = pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parents[3]
compiled = pytest.mark.skipif(triton_runtime.interpreted(), reason="TRITON_INTERPRET=1: nothing is compiled")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def run_cases(interpret: str) -> None:
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "gpu or not gpu",
            "tests/models/ops/triton_cases.py",
        ],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={**os.environ, "TRITON_INTERPRET": interpret},
    )
    if "only 0-dimensional arrays can be converted" in process.stdout:
        pytest.skip("this Triton's interpreter cannot count loops with this NumPy (2.4 made an error of its way)")
    assert process.returncode == 0 and " passed" in process.stdout, process.stdout + process.stderr


@pytest.mark.slow
def test_cases_through_the_interpreter():
    run_cases("1")


@pytest.mark.gpu
@needs_gpu
def test_cases_on_a_gpu():
    run_cases("0")


modern = pytest.mark.skipif(
    not hasattr(triton, "knobs") or not sass.cuobjdump().exists(), reason="needs Triton 3.4 with NVIDIA's tools"
)


@compiled
@modern
@pytest.mark.parametrize(
    "capability, dtype, lanes, keep",
    [  # each processor and each type with both
        (80, "fp32", 32, False),
        (80, "bf16", 128, True),
        (90, "fp32", 128, True),
        (90, "bf16", 32, False),
        (100, "fp32", 32, False),
        (100, "bf16", 128, True),
    ],
)
def test_the_forward_scan_compiles_to_few_instructions(capability, dtype, lanes, keep):
    """16 states need 16 powers of two and 48 products and sums, softplus and SiLU their own; the rest is bounded."""
    kernel = sass.forward(capability, dtype, lanes, keep)
    assert kernel.spilled == kernel.shared == 0 and kernel.registers <= sass.PARAMETERS.forward_registers
    assert not re.search(r"bar\.sync|shfl", kernel.ptx)
    assert not re.search(r"(ld|st)\.global\S*\.v[248]", kernel.ptx)  # neighbouring lanes may be rows apart
    assert 16 + 3 <= kernel.count("MUFU") <= 16 + 4
    assert kernel.count("STG") <= 1 + 16 * keep / sass.PARAMETERS.chunk + 0.1
    assert kernel.instructions <= (270 if dtype == "fp32" else 305)


@compiled
@modern
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_backward_scan_compiles_to_few_instructions(capability, dtype):
    kernel = sass.backward(capability, dtype)
    assert kernel.spilled == kernel.shared == 0  # B's and C's sums are passed on between registers
    assert kernel.count("SHFL") == 32 + 16 + 8 + 4 + 2
    assert kernel.count("BAR") <= 3 / sass.PARAMETERS.chunk
    assert kernel.count("MUFU") <= 45
    assert kernel.instructions <= (820 if dtype == "fp32" else 900)


@compiled
@modern
@pytest.mark.parametrize("capability, dtype", [(80, "bf16"), (90, "fp32"), (100, "bf16")])
def test_the_convolution_compiles_without_spills(capability, dtype):
    from models.ops import causal_conv_triton

    pointers = {**dict.fromkeys("x y dy dx".split(), f"*{dtype}"), **dict.fromkeys("weight bias sums".split(), "*fp32")}
    time, columns = causal_conv_triton.tile_shape(144, sass.PARAMETERS.conv_tile)
    constants, options = {"TIME": time, "CHANNELS": columns}, {"num_warps": sass.PARAMETERS.conv_warps}
    for kernel in (causal_conv_triton._forward, causal_conv_triton._backward):
        assert sass.compile_kernel(kernel, pointers, constants, capability, options).spilled == 0


@pytest.mark.slow
@compiled
@modern
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_norm_depthwise_and_pairs_compile_without_spills(dtype):
    """Vector loads and stores alone: channels are adjacent, and their number a multiple of 16."""
    from models.ops import channel_norm_triton, depthwise_triton, pairs_triton

    tensors = dict.fromkeys("a b x y d dx dy grad grad_a grad_b".split(), f"*{dtype}")
    pointers = {**tensors, **dict.fromkeys("taps weight bias sums".split(), "*fp32"), "eps": "fp32"}
    aligned = ("channels", "step", "a_step", "b_step", "y_step", "grad_step", "grad_a_step", "grad_b_step", "dy_step")
    span = depthwise_triton.WARP_SPAN * sass.PARAMETERS.depthwise_warps
    rows = {"ROWS": sass.PARAMETERS.depthwise_rows, "SPAN": span}
    pixels = {"ROWS": sass.PARAMETERS.norm_elements // 256, "BLOCK": 256}  # of 144 channels
    kernels = [
        (depthwise_triton._forward, {"GATED": False, "BACKWARD": False, **rows}),
        *[(depthwise_triton._forward, {"GATED": True, "BACKWARD": backward, **rows}) for backward in (False, True)],
        (depthwise_triton._backward, rows),
        *[(kernel, pixels) for kernel in (channel_norm_triton._forward, channel_norm_triton._backward)],
        *[
            (kernel, {"KL": kl, "ELEMENTS": pairs_triton.ELEMENTS})
            for kernel in (pairs_triton._forward, pairs_triton._backward)
            for kl in (True, False)
        ],
    ]
    for kernel, constants in kernels:
        compiled = sass.compile_kernel(kernel, pointers, constants, 90, {"num_warps": 4}, aligned=aligned)
        assert compiled.spilled == 0 and compiled.registers <= 255
        assert not re.search(r"(ld|st)\.global\S*\.b16", compiled.ptx)


@pytest.mark.slow
@compiled
@modern
@pytest.mark.parametrize("capability, dtype", [(80, "bf16"), (90, "fp32"), (90, "bf16"), (100, "bf16")])
def test_fused_products_compile_to_tensor_cores_without_spills(capability, dtype):
    """Vector loads and stores alone, and so little shared memory that a small GPU has it."""
    from models.ops import fused_triton

    pointers = dict.fromkeys("x values h v gate W W_in W_out made".split(), f"*{dtype}")
    pointers |= {"norm_weight": "*fp32", "norm_bias": "*fp32", "eps": "fp32"}
    kernels = fused_triton._normed_product, fused_triton._product, fused_triton._gated_projection
    for kernel, outputs, unit in zip(kernels, (288, 144, 144), (16, 16, 8), strict=True):  # XYScanNet-P, level 1
        constants, options = fused_triton.options(kernel, outputs, sass.PARAMETERS, unit)
        flags = {"ADD": True} if kernel is fused_triton._product else {}
        found = sass.compile_kernel(kernel, pointers, {**constants, **flags}, capability, options)
        assert found.spilled == 0 and found.registers <= 255 and found.shared <= 99 * 1024
        assert re.search(r"mma\.sync\.|mma_async|tcgen05\.mma", found.ptx)
        assert not re.search(r"(ld|st)\.global\.b(16|32)", found.ptx)


def test_why_missing_names_what_is_missing(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert triton_runtime.why_missing() == "no CUDA device"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton_runtime.why_missing() is None and triton_runtime.runs(torch.zeros(1))
    with monkeypatch.context() as switched_off:
        switched_off.setenv("XYSCANNET_TRITON", "0")
        assert triton_runtime.why_missing() and not triton_runtime.runs(torch.zeros(1))
    monkeypatch.setitem(sys.modules, "triton", None)
    triton_runtime._import_error.cache_clear()
    try:
        assert triton_runtime.why_missing().startswith("ModuleNotFoundError: ")
    finally:
        triton_runtime._import_error.cache_clear()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "channels, shape", [(48, (2, 252, 252)), (144, (1, 180, 320)), (576, (1, 45, 80)), (144, (8, 1, 1280))]
)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 2e-2)])
def test_real_shapes_on_a_gpu(channels, shape, dtype, tolerance):
    """Rows and columns as the network has them, values and gradients, twice the same bits."""
    from models.ops.selective_scan.chunked import selective_scan_chunked

    from .triton_cases import assert_near, network_inputs, weighted

    batch, height, width = shape
    for columns in (False, True):
        leaves, inputs = network_inputs(
            (batch, width if columns else height), height if columns else width, channels, dtype=dtype, columns=columns
        )
        inputs = [t.detach().requires_grad_() for t in inputs]
        results = []
        for scan in (triton_kernel.selective_scan_triton, triton_kernel.selective_scan_triton, selective_scan_chunked):
            y = scan(*inputs, delta_softplus=True)
            results.append([y, *torch.autograd.grad(weighted(y), inputs)])
        for first, second, reference in zip(*results, strict=True):
            assert torch.equal(first, second)
            assert_near(first, reference, tolerance)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("shape", [(1, 288, 720, 1280), (2, 288, 252, 252), (1, 1152, 45, 80), (3, 64, 90, 161)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 2e-2)])
def test_features_of_real_shapes_on_a_gpu(shape, dtype, tolerance):
    """Norm, depth-wise convolution, gate and divergence: values and gradients, twice the same bits."""
    from .triton_cases import OPERATIONS, assert_near, draw, weighted

    x = draw(*shape, dtype=dtype).detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    exact, weight = x.detach().float().requires_grad_(), draw(shape[1], 1, 3, 3)
    for op, ref in OPERATIONS.values():
        results = []
        for function, features in ((op, x), (op, x), (ref, exact)):
            with without_tf32():
                y = function(features, weight)
                results.append([y, *torch.autograd.grad(weighted(y), [features, weight], allow_unused=True)])
        for first, second, reference in zip(*results, strict=True):
            if first is not None:
                assert torch.equal(first, second)
                assert_near(first, reference.to(first.dtype), tolerance)


@pytest.mark.gpu
@needs_gpu
def test_more_elements_than_32_bits_count():
    """The last sequence of 2^31 + 2^21 elements, alone and among the others."""
    sequences, length, channels = 1025, 1024, 2048
    if torch.cuda.mem_get_info()[0] < 30 * 2**30:
        pytest.skip("needs 30 GiB of free memory on the device")
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(width: int) -> torch.Tensor:
        values = torch.randn(sequences, length, width, generator=generator, dtype=torch.bfloat16, device="cuda")
        return values.transpose(1, 2)

    u, delta, z, B, C = draw(channels), draw(channels), draw(channels), draw(16), draw(16)
    A = -torch.arange(1.0, 17, device="cuda").repeat(channels, 1)
    with torch.no_grad():
        y = triton_kernel.selective_scan_triton(u, delta, A, B, C, None, z, delta_softplus=True)[-1:].clone()
        alone = (t[-1:].clone() for t in (u, delta, z, B, C))
        u, delta, z, B, C = alone
        assert torch.equal(y, triton_kernel.selective_scan_triton(u, delta, A, B, C, None, z, delta_softplus=True))
