"""S6 against Mamba's formulas written with PyTorch's own layers."""
import math

import pytest
import torch
import torch.nn.functional as F

from models import mamba
from models.mamba import S6
from models.selective_scan import selective_scan
from models.selective_scan.mamba_kernel import why_missing


@pytest.fixture
def s6():
    torch.manual_seed(0)
    return S6(20).double()


def by_the_formulas(s6: S6, u: torch.Tensor) -> torch.Tensor:
    x, z = s6.in_proj(u).chunk(2, dim=-1)
    x = F.silu(s6.conv1d(x.transpose(1, 2))[..., :u.shape[1]])
    dt, B, C = s6.x_proj(x.transpose(1, 2)).split([s6.dt_rank, s6.d_state, s6.d_state], dim=-1)
    y = selective_scan(x, F.softplus(s6.dt_proj(dt)).transpose(1, 2), -torch.exp(s6.A_log),
                       B.transpose(1, 2), C.transpose(1, 2), s6.D, backend="reference")
    return s6.out_proj(y.transpose(1, 2) * F.silu(z))


@pytest.mark.parametrize("length", [1, 3, 4, 17])
def test_equals_the_formulas(s6, length):
    u = torch.randn(3, length, 20, dtype=torch.float64)
    torch.testing.assert_close(s6(u), by_the_formulas(s6, u), rtol=1e-10, atol=1e-12)


def test_is_causal(s6):
    u = torch.randn(1, 12, 20, dtype=torch.float64)
    changed = u.clone()
    changed[:, 7:] += 1
    torch.testing.assert_close(s6(changed)[:, :7], s6(u)[:, :7])
    assert (s6(changed)[:, 7:] != s6(u)[:, 7:]).any()


def test_initialisation_is_mambas():
    torch.manual_seed(0)
    s6 = S6(64)
    torch.testing.assert_close(s6.A_log, torch.arange(1, 17).float().log().expand(128, 16))
    assert (s6.D == 1).all() and s6.dt_rank == 4
    dt = F.softplus(s6.dt_proj.bias)
    assert 1e-4 <= dt.min() and dt.max() <= 0.1001
    # Log-uniform in [0.001, 0.1]: the mean of log dt is that of the bounds, within four standard errors.
    expected, spread = math.log(1e-2), math.log(100) / math.sqrt(12 * 128)
    assert abs(dt.log().mean().item() - expected) < 4 * spread
    assert s6.dt_proj.weight.abs().max() <= 4 ** -0.5


def test_fused_function_gets_what_it_needs(s6, monkeypatch):
    """A stand-in with mamba_inner_fn's parameters, computing by the formulas, in place of the CUDA function."""
    def fused(xz, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, out_proj_weight, A, D, delta_bias):
        x, z = xz.chunk(2, dim=1)
        x = F.silu(F.conv1d(x, conv_weight, conv_bias, padding=3, groups=len(conv_weight))[..., :xz.shape[-1]])
        dt, B, C = F.linear(x.transpose(1, 2), x_proj_weight).split([dt_proj_weight.shape[1], 16, 16], dim=-1)
        y = selective_scan(x, F.linear(dt, dt_proj_weight).transpose(1, 2), A, B.transpose(1, 2), C.transpose(1, 2), D,
                           z, delta_bias, delta_softplus=True, backend="reference")
        return F.linear(y.transpose(1, 2), out_proj_weight)

    monkeypatch.setattr(mamba, "resolve_backend", lambda *_: "mamba_ssm")
    monkeypatch.setattr(mamba, "has_causal_conv", lambda: True)
    monkeypatch.setattr(mamba, "fused_mamba", fused)
    u = torch.randn(2, 9, 20, dtype=torch.float64)
    torch.testing.assert_close(s6(u), by_the_formulas(s6, u), rtol=1e-10, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(bool(why_missing()), reason=f"mamba_ssm: {why_missing()}")
def test_fused_path_on_a_gpu(s6):
    s6 = s6.float().cuda()
    u = torch.randn(3, 63, 20, device="cuda")
    torch.testing.assert_close(s6(u), by_the_formulas(s6, u), rtol=1e-4, atol=1e-5)
