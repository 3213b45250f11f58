"""The benchmarks' yardstick computes what the released implementation computes, and takes the network's weights."""

import functools
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import baseline
from benchmarks.baseline import Baseline
from models import XYScanNet
from models.ops.selective_scan import selective_scan
from tests.parity import fill, image

PARITY = np.load(Path(__file__).parents[1] / "fixtures" / "parity" / "model_parity.npz")
CASES = json.loads(str(PARITY["meta"]))


@functools.cache
def state(dim: int, num_blocks: tuple[int, ...], seed: int) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        network = XYScanNet(dim, num_blocks)
    return fill(network.state_dict(), seed)


def build(case: dict, backend: str) -> Baseline:
    network = Baseline(case["dim"], case["num_blocks"], backend)
    network.load_state_dict(state(case["dim"], tuple(case["num_blocks"]), case["seed"]))
    return network.double()


@pytest.mark.parametrize("number", range(len(CASES)))
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_outputs_are_the_released_ones(number, backend):
    case = CASES[number]
    with torch.no_grad():
        out = build(case, backend)(image(case["shape"], case["seed"] + 1).double())
    np.testing.assert_allclose(out.numpy(), PARITY[f"{number}.out"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", [k for k, case in enumerate(CASES) if "grad_norms" in case])
def test_gradients_are_the_released_ones(number):
    case = CASES[number]
    network = build(case, "reference")
    x = image(case["shape"], case["seed"] + 1).double().requires_grad_()
    out = network(x)
    (out * image(out.shape, case["seed"] + 2).double()).mean().backward()
    np.testing.assert_allclose(x.grad.numpy(), PARITY[f"{number}.grad_input"], rtol=0, atol=1e-8)
    norms = {name: parameter.grad.norm().item() for name, parameter in network.named_parameters()}
    assert norms == pytest.approx(case["grad_norms"], rel=1e-6)


def test_maps_stay_channel_planes():
    """No layer gets the channels-last layout, which would make the yardstick faster than what it stands for."""
    network, seen = Baseline(8, (1, 1, 1)), []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0].stride(1) > 1 < out.stride(1)))
    network(torch.rand(2, 3, 16, 16) - 0.5)
    assert len(seen) > 50 and all(seen)


def test_fused_function_gets_what_it_needs(monkeypatch):
    """A stand-in with mamba_inner_fn's parameters, computing by the layers, in place of the CUDA function."""

    def mamba_inner_fn(
        xz,
        conv1d_weight,
        conv1d_bias,
        x_proj_weight,
        delta_proj_weight,
        out_proj_weight,
        out_proj_bias,
        A,
        B=None,
        C=None,
        D=None,
        delta_bias=None,
        B_proj_bias=None,
        C_proj_bias=None,
        delta_softplus=True,
    ):
        assert out_proj_bias is None and B is None and C is None
        x, z = xz.chunk(2, dim=1)
        x = F.silu(F.conv1d(x, conv1d_weight, conv1d_bias, padding=3, groups=x.shape[1])[..., : x.shape[-1]])
        dt, B, C = F.linear(x.mT, x_proj_weight).split([delta_proj_weight.shape[1], 16, 16], dim=-1)
        y = selective_scan(
            x, F.linear(dt, delta_proj_weight).mT, A, B.mT, C.mT, D, z, delta_bias, delta_softplus, backend="reference"
        )
        return F.linear(y.mT, out_proj_weight)

    torch.manual_seed(0)
    hidden = torch.randn(2, 9, 20, dtype=torch.float64)
    mamba = baseline.Mamba(20, functools.partial(selective_scan, backend="reference")).double()
    monkeypatch.setitem(sys.modules, "causal_conv1d", types.ModuleType("causal_conv1d"))
    interface = types.SimpleNamespace(mamba_inner_fn=mamba_inner_fn)
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", interface)
    fused = baseline.Mamba(20, functools.partial(selective_scan, backend="mamba_ssm")).double()
    fused.load_state_dict(mamba.state_dict())
    torch.testing.assert_close(fused(hidden), mamba(hidden), rtol=1e-10, atol=1e-12)
